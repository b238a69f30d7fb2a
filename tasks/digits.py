"""Digits: the first row of cells of a mosaic of digits, to be continued pixel by pixel. Made by `scripts/digits_mosaic.py`."""

from __future__ import annotations

from tasks.base import Task

TASK = Task(name="digits", title="Digits", line="mosaics of digits, continued pixel by pixel", models=("digits-mosaic",))
