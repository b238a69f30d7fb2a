"""Faults planted on purpose, to see whether the audit notices each."""
