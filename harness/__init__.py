"""The harness: loads a model, runs methods over tasks, writes records, and derives every number from the records."""

__version__ = "0.1.0"
