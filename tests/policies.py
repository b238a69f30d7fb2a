"""The group of policies in suites over methods: one of them in the fast check, as they share their loop; the others are slow."""

from __future__ import annotations

import pytest

import methods

FAST = "opt-tree"
LIVE = [name for name in methods.names(group=methods.POLICIES) if not methods.get(name).replay_only]
POLICIES = [pytest.param(name, marks=[pytest.mark.slow] if name != FAST else []) for name in LIVE]
