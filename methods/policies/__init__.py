"""Policies: when to stop drafting and what to verify, a file each. `--method policies` asks for all of them; `all` does not."""
