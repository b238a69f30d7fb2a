"""`harness profile`: where a step's time goes, or what a step costs by context and tree size; by a table of costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import methods
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
    from harness.costs.table import CostTable
    from harness.load.config import ModelConfig
    from harness.load.model import Loaded
    from harness.run.plan import RunSpec
    from methods import Arm
    from methods.base import SamplerParams

SWEPT_CONTEXTS, TREES = (128, 512, 1024, 2048, 4096), (8, 16, 32, 60, 120)
KEPT = Path("results/costs")  # where `harness costs` writes
ROUNDS = 9  # of measuring costs, where no table is there


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
    costs: Path | None
    out: Path

    def __post_init__(self) -> None:
        for option_name, values in (("--context", self.contexts), ("--tree", self.trees)):
            need(self.sweep or not values, f"{option_name} is for --sweep, which is not asked for")
            for value in values:
                bounded(option_name, value)
        for option_name, is_given in (("--max-new-tokens", self.max_new_tokens is not None), ("--limit", self.limit != 1)):
            need(not (self.sweep and is_given), f"{option_name} is of decoding, and --sweep decodes nothing: it shows costs")
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
        budget = self.max_new_tokens or config.max_new_tokens
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
@option("--max-new-tokens", type=int, default=None, help="Length budget (default: the model's).")
@preset_option
@changes_option
@dtype_option
@threads_option
@head_option
@option("--sweep", is_flag=True, help="Instead: what a step costs by context and tree size (eagle2).")
@option("--context", "contexts", type=int, multiple=True, help=f"Tokens, for --sweep; repeatable ({_listed(SWEPT_CONTEXTS)}).")
@option("--tree", "trees", type=int, multiple=True, help=f"Draft nodes, for --sweep; repeatable ({_listed(TREES)}).")
@option(
    "--costs", type=PATH, default=None, metavar="DIR|FILE",
    help="Tables of `harness costs` (default: one in OUT/costs or results/costs of this machine, else they are measured).",
)  # fmt: skip
@option("--out", type=PATH, default=Path("results/profile"), help="Where tables and plots go.")
@include_option
def command(includes: tuple[Path, ...], **options: Any) -> None:
    """Where a step's time goes, with the ceilings beside it; with --sweep, what a step costs by context and tree size.

    Both are views of a table of costs (`harness costs`). --sweep is of eagle2 at `paper` but for the tree's size; --method, --set
    and --preset do not touch it.
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
    written = _swept(loaded, request, spec, where) if request.sweep else _profiled(loaded, request, spec, params, where)
    for path in written:
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


def _table(
    loaded: Loaded, request: ProfileRequest, spec: RunSpec, frequent: int | None, kinds: set[str], rows: int = 0
) -> tuple[CostTable, str, list[Path]]:  # fmt: skip
    """(costs, where they are from, the file written): the table that --costs names, one that was measured here before, or one
    measured now. kinds: drafters that it must have; rows: of the target, that it must reach."""
    from harness.common.files import write_file
    from harness.costs.session import CONTEXTS, Wanted, chosen, file_of, given_table, machine_of, measured_of, text_of
    from harness.costs.table import read_all

    machine, asked = machine_of(loaded.target, loaded.dtype, spec.threads), sorted(set(request.contexts))
    what = loaded.config.name, machine, frequent, request.temperature
    if request.costs is not None:
        table = given_table(request.costs, *what)
        if lacking := lacks(table, kinds, asked, rows):
            raise UserError(f"--costs {request.costs}: the costs of {table.title} {lacking}")
        return table, f"the costs in {request.costs}", []
    for folder in (request.out / "costs", KEPT):
        there = chosen(read_all(folder), *what) if folder.is_dir() and any(folder.rglob("*.json")) else []
        for table in there:
            if not table.random_weights and not lacks(table, kinds, asked, rows):
                return table, f"the costs in {file_of(table, folder)}", []
    contexts = tuple(asked or (CONTEXTS if not request.sweep else SWEPT_CONTEXTS))
    wanted = Wanted(contexts=contexts, frequent=frequent, command="harness profile", temperature=request.temperature,
                    rows=(rows,) if rows else (), rounds=ROUNDS)  # fmt: skip
    table = measured_of(loaded, spec.threads, wanted, kinds)
    file = write_file(file_of(table, request.out / "costs"), text_of(table))
    return table, f"the costs in {file}", [file]


def lacks(table: CostTable, kinds: Collection[str], contexts: Sequence[int], rows: int) -> str:
    """What a table has not; empty where nothing."""
    if missing := [methods.DRAFTERS[kind] for kind in sorted(kinds) if not table.has(kind)]:
        return f"were measured without a {missing[0]}"
    most = max(c.tokens for c in table.contexts)
    if beyond := [c for c in contexts if c > most]:
        return f"reach to a context of {most:,} tokens, not {beyond[0]:,}"
    most = min(max(c.verify) for c in table.contexts)
    return f"reach to {most} rows of the target, not {rows}" if rows > most else ""


def _swept(loaded: Loaded, request: ProfileRequest, spec: RunSpec, where: str) -> list[Path]:
    """What steps cost by context and tree size; prints the table and returns the files written."""
    from harness.costs.sweep import swept, write_sweep
    from harness.costs.work import work_of

    trees = sorted(set(request.trees or TREES))
    arms = [(n, arm) for n in trees for arm in trees_of(loaded.config, request.head, n)]
    works = [(n, work) for n, arm in arms if (work := work_of(arm.method, arm.options, request.temperature)) is not None]
    table, costs, written = _table(loaded, request, spec, None, {methods.EAGLE}, max(w.rows for _, w in works))
    contexts = [c.tokens for c in table.contexts]
    if request.contexts:
        contexts = [c for c in sorted(set(request.contexts)) if c <= max(contexts)]
    rows = swept(table, works, contexts)
    click.echo(f"What a step costs, in plain steps, by {costs}: at a τ above it the tree is faster than plain decoding.")
    shown = rows.pivot(index="arm", columns="context", values="plain_steps")
    click.echo(shown.reindex(list(dict.fromkeys(rows["arm"]))).round(2).to_string())
    return [*written, *write_sweep(rows, where, request.out)]


def _profiled(loaded: Loaded, request: ProfileRequest, spec: RunSpec, params: SamplerParams, where: str) -> list[Path]:
    """Where a step's time goes; prints the report and returns the files written."""
    from harness.costs.ceiling import ceiling
    from harness.costs.show import profile_rows, report, write_profile
    from harness.costs.steps import frequent_of, profiled

    config, budget = loaded.config, params.max_new_tokens
    prompts = [loaded.encode(loaded.render([("user", ps.prompts[i].turns[0])])) for i in range(request.limit)
               for ps in spec.prompt_sets if i < len(ps.prompts)]  # fmt: skip
    room = config.context_length - budget
    prompts = [ids for ids in prompts if len(ids) <= room]
    if not prompts:
        raise UserError(f"no bundled prompt fits into the {max(room, 0)} tokens that --max-new-tokens {budget} leaves of the "
                        f"model's {config.context_length}")  # fmt: skip
    limit = ceiling(loaded)  # before any memory is taken but the weights'
    tables, sources, written = {}, list[str](), list[Path]()
    for frequent in sorted({frequent_of(arm) for arm in spec.arms}, key=lambda n: n or 0):
        kinds = {arm.method.drafter for arm in spec.arms if arm.method.drafter and frequent_of(arm) == frequent}
        tables[frequent], costs, files = _table(loaded, request, spec, frequent, kinds)
        sources.append(costs)
        written += files
    names = ", ".join(arm.name for arm in spec.arms)
    say(f"decoding {len(prompts)} bundled prompts with {names} ...")
    profiles = profiled(loaded, spec.arms, tables, prompts, params)
    if other := next((t for t in tables.values() if t.machine.mode != loaded.target.mode), None):
        raise UserError(f"the costs are of steps in mode {other.machine.mode}, and steps were decoded in mode "
                        f"{loaded.target.mode}: name costs of that mode with --costs, or HARNESS_ENGINE=torch")  # fmt: skip
    best = _known_best(config, spec, request)
    rows = profile_rows(profiles, profiles[0], limit, best)
    text = report(profiles, limit, where, best, " and ".join(sources))
    click.echo(text)
    return [*written, *write_profile(rows, text, where, request.out)]


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
