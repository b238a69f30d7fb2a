"""Faults planted on purpose, and whether the audit notices each."""
