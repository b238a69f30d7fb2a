"""One YAML a target (`harness list models`), and under `heads/` the draft heads trained here and shipped."""
