"""Users' files, registered: their methods, tasks, models and kinds of drafters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import methods
import tasks
from harness.common.errors import UserError, say
from harness.common.users_files import files_to_run
from harness.load import config as model_configs
from harness.load.kinds import KINDS
from harness.watch import originals


def include_all(paths: Sequence[Path]) -> None:
    """Register users' files, and say which were loaded: YAMLs as models, .py files as tasks, methods and kinds of drafters.

    Of a folder those files are loaded that register something; a file named by itself is loaded whatever is in it.

    Raises:
        UserError: a path that is not there, or holds nothing to register.
    """
    originals.remember() if paths else originals.forget()
    for path in paths:
        if not path.exists():
            raise UserError(f"--include {path}: no such file or folder")
        kinds = dict(KINDS)
        new_tasks = tasks.include(path)
        new_methods = methods.include(path, {home for name in new_tasks if (home := tasks.get(name).home)})
        # models last: a YAML may name a kind of drafter that a file beside it brings
        new_models = model_configs.include(path)
        new_kinds = sorted(name for name, kind in KINDS.items() if kinds.get(name) is not kind)
        if not (new_models or new_tasks or new_methods or new_kinds):
            what = "method (@method), task (TASK = Task(...)), kind of drafter (add_kind) or model (.yaml)"
            raise UserError(f"--include {path}: found no {what} there")
        loaded = [*files_to_run(path), *(model_configs.known_models()[name] for name in new_models)]
        beside = [file for file in sorted(path.resolve().glob("*")) if file.suffix in (".py", *model_configs.SUFFIXES)]
        left_out = [file.name for file in beside if file not in loaded]
        drafters = f"; kind of drafter: {', '.join(new_kinds)}" if new_kinds else ""
        others = f"; left out, as they register nothing: {', '.join(left_out)}" if left_out else ""
        say(f"--include {path}: loaded {', '.join(file.name for file in loaded)}{drafters}{others}")
