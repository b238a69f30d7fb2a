"""Options that several commands take, checked before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import methods
import tasks
from harness.common.errors import UserError, unknown
from harness.load import config as model_configs

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


def include_all(paths: tuple[Path, ...]) -> None:
    """Register users' files: YAMLs as models, .py files with a `TASK` as tasks, others as methods."""
    for path in paths:
        if not path.exists():
            raise UserError(f"--include {path}: no such file or folder")
        models = model_configs.include(path) if path.is_dir() or path.suffix in model_configs.SUFFIXES else []
        new_tasks = tasks.include(path) if path.is_dir() or path.suffix == ".py" else []
        new_methods = methods.include(path) if path.is_dir() or path.suffix == ".py" else []
        if not (models or new_tasks or new_methods):
            raise UserError(f"--include {path}: found no method (@method), task (TASK = Task(...)) or model (.yaml) there")


def checked(options: dict[str, Any]) -> None:
    """Every number a user can get wrong, before anything is loaded."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise UserError(what)

    o = options
    need(
        math.isfinite(o["temperature"]) and o["temperature"] >= 0,
        f"--temperature is {o['temperature']}; it must be 0 (greedy) or more",
    )
    need(0 < o["top_p"] <= 1, f"--top-p is {o['top_p']}; it must be over 0 and at most 1")
    need(o["limit"] is None or o["limit"] > 0, f"--limit is {o['limit']}; it must be at least 1")
    need(
        o["max_new_tokens"] is None or o["max_new_tokens"] > 0,
        f"--max-new-tokens is {o['max_new_tokens']}; it must be at least 1",
    )
    need(o["repeats"] > 0, f"--repeats is {o['repeats']}; it must be at least 1")
    need(o["threads"] is None or o["threads"] > 0, f"--threads is {o['threads']}; it must be at least 1")
    if o["dtype"] not in DTYPES:
        raise unknown("dtype", o["dtype"], DTYPES)
