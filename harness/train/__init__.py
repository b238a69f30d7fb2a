"""Training drafters: the target's answers with their features, one loop for all kinds, and what each kind adds to it."""
