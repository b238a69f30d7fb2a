"""`harness profile`: where a step's time goes; or speed by context and tree size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import (
    PATH,
    changes_option,
    dtype_option,
    examples,
    head_option,
    include_all,
    include_option,
    model_option,
    option,
    preset_option,
    threads_option,
)
from harness.common.bounds import bounded
from harness.common.errors import UserError, say
from harness.common.machine import keep_freed_memory
from harness.run.request import RunRequest, need

if TYPE_CHECKING:
    from harness.load.config import ModelConfig
    from harness.load.model import Loaded
    from harness.run.plan import RunSpec
    from methods import Arm
    from methods.base import SamplerParams

SWEPT = 32  # tokens of each cell of --sweep, where nothing is asked for
CONTEXTS, TREES = (128, 512, 1024, 2048, 4096), (8, 16, 32, 60, 120)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What one `harness profile` asks for. `limit`: bundled prompts a task. `contexts` (tokens) and `trees` (draft nodes) are of
    the sweep; none for its own.

    Raises:
        UserError: a value that cannot be.
    """

    methods: tuple[str, ...]
    model: str
    temperature: float
    limit: int
    max_new_tokens: int | None
    preset: str
    changes: tuple[str, ...]
    dtype: str
    threads: int | None
    head: Path | None
    sweep: bool
    contexts: tuple[int, ...]
    trees: tuple[int, ...]
    out: Path

    def __post_init__(self) -> None:
        for option_name, values in (("--context", self.contexts), ("--tree", self.trees)):
            need(self.sweep or not values, f"{option_name} is for --sweep, which is not asked for")
            for value in values:
                bounded(option_name, value)
        self.run_request()  # which checks the rest

    @property
    def measured(self) -> tuple[str, ...]:
        """The methods that are measured: the sweep's trees are EAGLE-2's, whatever else is named."""
        return ("eagle2",) if self.sweep else self.methods

    def run_request(self) -> RunRequest:
        return RunRequest(
            methods=("vanilla", *(n for n in self.measured if n != "vanilla")), tasks=("all",), source="bundled",
            model=self.model, temperature=self.temperature,
            limit=self.limit, max_new_tokens=self.max_new_tokens, preset=self.preset,
            changes=self.changes, dtype=self.dtype, threads=self.threads, head=self.head,
        )  # fmt: skip

    def budget(self, config: ModelConfig) -> int:
        """New tokens of each generation."""
        budget = self.max_new_tokens or (SWEPT if self.sweep else config.max_new_tokens)
        need(
            budget >= 2,
            f"--max-new-tokens is {budget}; a profile takes at least 2, as the first token comes from the prompt alone",
        )
        return budget


@click.command(
    "profile",
    epilog=examples(
        "harness profile --method eagle2", "harness profile --sweep --context 128 --context 1024 --tree 16 --tree 60"
    ),
)
@option("--method", "methods", multiple=True, default=("eagle1", "eagle2"), metavar="NAME", help="Repeatable (eagle1, eagle2).")
@model_option
@option("--temperature", type=float, default=0.0, help="0 is greedy decoding.")
@option("--limit", type=int, default=1, help="Bundled prompts a task.")
@option("--max-new-tokens", type=int, default=None, help="Length budget (default: the model's; with --sweep: 32).")
@preset_option
@changes_option
@dtype_option
@threads_option
@head_option
@option("--sweep", is_flag=True, help="Instead: speed by context and tree size (vanilla, eagle2).")
@option("--context", "contexts", type=int, multiple=True, help=f"Tokens, for --sweep; repeatable ({_listed(CONTEXTS)}).")
@option("--tree", "trees", type=int, multiple=True, help=f"Draft nodes, for --sweep; repeatable ({_listed(TREES)}).")
@option("--out", type=PATH, default=Path("results/profile"), help="Where tables and plots go.")
@include_option
def command(includes: tuple[Path, ...], **options: Any) -> None:
    """Where a step's time goes, with the ceilings beside it; with --sweep, speed by context and tree size.

    --sweep measures vanilla and eagle2 at `paper` but for the tree's size; --method, --set and --preset do not touch it.
    """
    from harness.load.config import model_config
    from harness.run.session import run_spec

    request = ProfileRequest(**options)
    include_all(includes)
    config = model_config(request.model)
    spec, budget = run_spec(config, request.run_request()), request.budget(config)
    untraced = [a.name for a in spec.arms if a.method.external]
    if untraced:
        raise UserError(f"method {untraced[0]} is another loop: it has no steps to profile")
    loaded, where = _loaded(config, request, spec)
    from methods.base import SamplerParams

    params = SamplerParams(budget, frozenset(config.stop_ids), temperature=request.temperature, key=1)
    for path in (_swept if request.sweep else _profiled)(loaded, request, spec, params, where):
        click.echo(path)


def _loaded(config: ModelConfig, request: ProfileRequest, spec: RunSpec) -> tuple[Loaded, str]:
    """The model, and in words what is measured on what."""
    import torch

    from harness.load.model import load
    from harness.run.arms import check_heads
    from harness.run.plan import drafters_of

    keep_freed_memory()
    torch.set_num_threads(spec.threads)
    say(f"loading {config.title} ...")
    loaded = load(config, request.dtype, head=request.head, drafters=drafters_of([spec]))
    check_heads(spec.arms, loaded)
    return loaded, f"{config.name}, T = {request.temperature:g}, {loaded.dtype}, {spec.threads} threads"


def _swept(loaded: Loaded, request: ProfileRequest, spec: RunSpec, params: SamplerParams, where: str) -> list[Path]:
    """Speed by context and tree size; prints the table and returns the files written."""
    import pandas as pd

    from harness.costs.sweep import sweep, write_sweep

    contexts, trees = sorted(set(request.contexts or CONTEXTS)), sorted(set(request.trees or TREES))
    arms = [("vanilla", next(a for a in spec.arms if a.name == "vanilla"))]
    arms += [(f"{n} nodes", arm) for n in trees for arm in trees_of(loaded.config, request.head, n)]
    text = loaded.encode_text("\n\n".join(t for ps in spec.prompt_sets for p in ps.prompts for t in p.turns))
    while len(text) < max(contexts):
        text = text + text
    say(f"contexts {', '.join(map(str, contexts))} x trees {', '.join(map(str, trees))} ...")
    whole = replace(params, stop_ids=frozenset())  # every cell as many tokens
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    for at_context in sweep(loaded, arms, contexts, text, whole):
        rows += at_context
        speeds = ", ".join(f"{r['arm']} {r['tokens_per_s']:.1f} tokens/s" for r in at_context)
        say(f"  {at_context[0]['context']} tokens: {speeds}")
        title = f"{where}, {params.max_new_tokens} tokens of one text"
        written = write_sweep(pd.DataFrame(rows), title, request.out)
    if not rows:
        most = loaded.config.context_length
        raise UserError(f"no context of {', '.join(map(str, contexts))} fits into the model's {most} tokens")
    shown = pd.DataFrame(rows).pivot(index="arm", columns="context", values="tokens_per_s")
    click.echo(shown.reindex([label for label, _ in arms]).round(1).to_string())
    return written


def _profiled(loaded: Loaded, request: ProfileRequest, spec: RunSpec, params: SamplerParams, where: str) -> list[Path]:
    """Where a step's time goes; prints the report and returns the files written."""
    from harness.costs.ceiling import ceiling
    from harness.costs.show import profile_rows, report, write_profile
    from harness.costs.steps import profile

    config, budget = loaded.config, params.max_new_tokens
    prompts = [loaded.encode(loaded.render([("user", ps.prompts[i].turns[0])])) for i in range(request.limit)
               for ps in spec.prompt_sets if i < len(ps.prompts)]  # fmt: skip
    room = config.context_length - budget
    prompts = [ids for ids in prompts if len(ids) <= room]
    if not prompts:
        raise UserError(f"no bundled prompt fits into the {max(room, 0)} tokens that --max-new-tokens {budget} leaves of the "
                        f"model's {config.context_length}")  # fmt: skip
    profiles = []
    for arm in spec.arms:
        say(f"profiling {arm.name} on {len(prompts)} bundled prompts ...")
        profiles.append(profile(loaded, arm, prompts, params))
    limit, best = ceiling(loaded), _known_best(config, spec, request)
    rows = profile_rows(profiles, profiles[0], limit, best)
    text = report(profiles, limit, where, best)
    click.echo(text)
    return write_profile(rows, text, where, request.out)


def trees_of(config: ModelConfig, head: Path | None, total: int) -> tuple[Arm, ...]:
    """EAGLE-2 at the paper's options with a tree of another size."""
    from harness.run.arms import make_arms

    return make_arms(("eagle2",), "paper", {"total": str(total)}, config, head or config.head_folder)


def _known_best(config: ModelConfig, spec: RunSpec, request: ProfileRequest) -> dict[str, float]:
    """The best decode speedup that `harness tune` raced, by method, where it was run here."""
    from harness.run.tuned import find_tuned

    best = {}
    for arm in spec.arms:
        if arm.method.tunable:
            try:
                found = find_tuned(
                    config, arm.name, request.head or config.head_folder, temperature=request.temperature, dtype=request.dtype,
                    threads=request.threads,
                )  # fmt: skip
            except UserError:
                continue
            best[arm.name] = float(found.raced["speedup"])
    return best
