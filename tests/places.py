"""Where things lie that tests read."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
TINY = TESTS / "tiny" / "tiny.yaml"  # a LLaMA of a few hundred kB with drafters of every kind: made by make_tiny.py
SHARED = ROOT.parent / "shared"  # the authors' prompts, outputs and golden records: tests that read it skip where it is absent
