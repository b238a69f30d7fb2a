"""Other projects' files, in and out: answer files of EAGLE and Spec-Bench."""
