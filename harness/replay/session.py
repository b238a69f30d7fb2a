"""`harness replay`: vanilla's answers, one drafting pass over them, and any tree's steps from that."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import methods
import tasks
from harness.audit.probe.ledger_pairs import LedgerPrompts
from harness.cluster.request import ClusterRequest
from harness.common.bounds import bounded
from harness.common.cores import usable_cores
from harness.common.errors import UserError, duration, say, unknown
from harness.common.machine import keep_freed_memory
from harness.common.names import VANILLA
from harness.common.options import parse_changes
from harness.common.progress import showing_progress
from harness.costs.relative import named, table_of
from harness.ledger.ledger import read
from harness.ledger.record import Record, canonical_hash
from harness.load.config import ModelConfig, model_config
from harness.load.kinds import drafter_kind
from harness.load.model import Loaded, load
from harness.load.preflight import architecture
from harness.replay import record
from harness.replay.choices import Choice
from harness.replay.choose import choose, head_of
from harness.replay.known import KnownText
from harness.replay.price import Prices, prices_named
from harness.replay.record import Replay
from harness.replay.replayed import Replayed, cannot_be_replayed, replayed
from harness.replay.rows import Rows, RowsDrafter
from harness.replay.store import Drawn, Store
from harness.replay.texts import Answered, answered, known_text
from harness.run.arms import make_arms, tell_other_heads
from harness.run.request import MoreTrees, RunRequest, need
from harness.run.session import carry_out, tell_failures
from harness.run.tuned import find_tuned
from methods import Arm

CHOSEN = "chosen"  # the preset of options that `choose` found
TOP_K, DEPTH = 10, 8  # of the pass; what trees ask for beyond it is drafted then


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """One `harness replay`. `results`: a ledger with vanilla's answers; None: they are made, in `out`, as a run makes them.

    policies: `METHOD[+PRESET][+KEY=VALUE]...`, or a group's word. choices: options that `choose` found, replayed beside them.
    costs: names or files, for speeds. as_if: also those of another target: as if a step's parts cost this one what they cost
    that. limit: conversations a task. drafter: the kind of EAGLE head that policies draft with; None: that of `head`. out: where
    the rows and replays go; None: beside the ledger.

    Raises:
        UserError: a value that cannot be.
    """

    policies: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    results: Path | None = None
    tasks: tuple[str, ...] = ("all",)
    model: str | None = None
    temperatures: tuple[float, ...] = ()
    limit: int | None = None
    max_new_tokens: int | None = None
    source: str = "auto"
    prompts_dir: Path | None = None
    dtype: str = "auto"
    threads: int | None = None
    head: Path | None = None
    drafter: str | None = None
    out: Path | None = None
    costs: tuple[str, ...] = ()
    as_if: bool = False
    top_k: int = TOP_K
    depth: int = DEPTH

    def __post_init__(self) -> None:
        if self.drafter not in (None, *methods.HEADS):
            raise unknown("kind of EAGLE head", str(self.drafter), methods.HEADS)
        need(bool(self.policies or self.choices), "at least one --policy must be named, or --choices")
        need(
            self.results is not None or self.out is not None,
            "name the ledger to replay (--results), or where to make one (--out)",
        )
        for name in ("limit", "max_new_tokens", "threads", "top_k", "depth"):
            bounded(f"--{name.replace('_', '-')}", getattr(self, name))

    @property
    def folder(self) -> Path:
        found = self.out or self.results
        assert found is not None
        return found


def drafts_with(request: ReplayRequest) -> str:
    """The kind of EAGLE head that policies draft with."""
    of_head = drafter_kind(request.head) if request.head is not None else methods.EAGLE
    return request.drafter or (of_head if of_head in methods.HEADS else methods.EAGLE)


def prices_of(config: ModelConfig, request: ReplayRequest) -> dict[str, Prices]:
    """The prices asked for, else those that the choices were made by; by the name that options have them under.

    Raises:
        UserError: there are no such costs, or they are of another architecture and nobody said as if.
    """
    prices = prices_named(request.costs or tuple(dict.fromkeys(c.costs for c in request.choices)))
    own = architecture(config)
    for name in () if request.as_if else prices:
        table = table_of(name)
        if table is not None and own is not None and table.architecture != own:
            raise UserError(f"the costs {name} are of {table.model}, and the target is {config.name}: --as-if takes them all the "
                            "same, as if a step's parts cost this target what they cost that one")  # fmt: skip
    return prices


def arms_of(config: ModelConfig, request: ReplayRequest, temperature: float) -> list[Arm]:
    """The methods to replay, with their options; of a group those that can be replayed.

    Raises:
        UserError: an unknown one, or one that cannot be replayed.
    """
    found: list[Arm] = []
    head = request.head or config.head_folder

    def tuned(method: str) -> dict[str, object]:
        return dict(
            find_tuned(config, method, head, temperature=temperature, dtype=request.dtype, threads=request.threads).options
        )

    for text in request.policies:
        is_group = text in (*methods.GROUPS, "all")
        more = MoreTrees(text) if is_group else MoreTrees.parsed(text)
        made = make_arms((more.method,), more.preset, parse_changes(more.changes), config, head, tuned, replays=True,
                         drafter=drafts_with(request))  # fmt: skip
        for arm in made:
            if why := cannot_be_replayed(arm.method, temperature):
                if not is_group:
                    raise UserError(why)
                continue
            if all((arm.name, arm.options) != (other.name, other.options) for other in found):
                found.append(arm)
    for c in (c for c in request.choices if c.temperature == temperature):
        m = methods.get(c.method).on(drafts_with(request))
        options = {**c.options, **({"costs": named(str(c.options["costs"]))} if "costs" in c.options else {})}
        if set(options) != set(m.options):
            raise UserError(
                f"--choices has other options of {c.method} than it has: {', '.join(sorted(set(options) ^ set(m.options)))}"
            )
        if all((m.name, options) != (other.name, other.options) for other in found):
            found.append(Arm(m, CHOSEN, options))
    return found


def answers_made(config: ModelConfig, request: ReplayRequest, over: ClusterRequest | None = None) -> None:
    """Vanilla's answers, measured where they are not there yet."""
    requests = [
        RunRequest(methods=("vanilla",), tasks=request.tasks, model=config.given, temperature=t, limit=request.limit,
                   max_new_tokens=request.max_new_tokens, source=request.source, prompts_dir=request.prompts_dir,
                   dtype=request.dtype, threads=request.threads, out=request.folder)
        for t in request.temperatures or (0.0,)
    ]  # fmt: skip
    tell_failures(carry_out(config, requests, over).n_failed)


def _chosen(records: Iterable[Record], request: ReplayRequest, model: str) -> list[Record]:
    """Vanilla's records of the tasks, budget, source and conversations asked for, at all temperatures: a later turn's prompt
    holds the answer at T = 0 to the one before.

    Raises:
        UserError: no such task, or one that the model cannot be asked.
    """
    names = {n for name in request.tasks for n in (tasks.names_for(model) if name == "all" else [name])}
    for name in names:
        tasks.check_model(name, model)
    own = [r for r in records if not r["is_warmup"] and r["task"] in names
           and request.max_new_tokens in (None, r["max_new_tokens"]) and request.source in ("auto", r["source"])]  # fmt: skip
    if request.limit is None:
        return own
    first: dict[str, dict[str, None]] = {}
    for r in own:
        first.setdefault(r["task"], {}).setdefault(r["sample_id"])
    kept = {(task, sample) for task, samples in first.items() for sample in list(samples)[: request.limit]}
    return [r for r in own if (r["task"], r["sample_id"]) in kept]


def of_one_kind(answers: Iterable[Record], folder: Path) -> None:
    """
    Raises:
        UserError: answers to one task that were made in several ways: their means would be of neither.
    """
    by_task: dict[tuple[str, float], list[Record]] = {}
    for r in answers:
        by_task.setdefault((r["task"], r["temperature"]), []).append(r)
    for name, how in (("max_new_tokens", "name one with --max-new-tokens"), ("source", "name one with --source"),
                      ("top_p", "keep each in a ledger of its own"), ("seed", "keep each in a ledger of its own")):  # fmt: skip
        for (task, t), own in by_task.items():
            if len(found := sorted({r[name] for r in own})) > 1:  # type: ignore[literal-required]
                raise UserError(f"{folder} holds answers to {task} at T = {t:g} of several {name}: {', '.join(map(str, found))}; "
                                f"{how}")  # fmt: skip


@dataclass(slots=True)
class Told:
    """What a replay took, in seconds and counts, for its last line."""

    drafting_s: float = 0.0
    positions: int = 0
    replaying_s: float = 0.0
    tokens: int = 0
    asked: int = 0
    lacking: int = 0

    @property
    def lines(self) -> list[str]:
        found = []
        if self.positions:
            found.append(f"drafted at {self.positions:,} positions in {duration(self.drafting_s)}")
        if self.tokens:
            rate, share = self.tokens / max(self.replaying_s, 1e-9), self.lacking / max(self.asked, 1)
            found.append(f"replayed {self.tokens:,} tokens at {rate:,.0f} tokens/s; {share:.1%} of the rows that trees asked for "
                         "were not of the drafting pass")  # fmt: skip
        return found


def choose_options(request: ReplayRequest, conversations: int) -> list[Choice]:
    """The best options of each policy asked for, by the costs asked for, on held-out conversations.

    Raises:
        UserError: as `choose`.
    """
    keep_freed_memory()
    torch.set_num_threads(request.threads or usable_cores())
    config = model_config(request.model or "smollm2-135m")
    prices = prices_of(config, request)
    need(bool(prices and request.policies), "--choose takes --policy, and the --costs to choose by")
    wanted = []
    for text in request.policies:
        if text in methods.GROUPS:
            wanted += methods.names(exact=True, group=text)
        else:
            wanted.append(methods.get(text).name)
    say(f"loading {config.title} ...")
    kind = drafts_with(request)
    kinds = {methods.get(name).on(kind).drafter or kind for name in wanted}
    check_priced(prices, kinds)
    loaded = load(config, request.dtype, head=request.head, drafters=kinds & {*methods.HEADS})
    return choose(
        loaded, list(dict.fromkeys(wanted)), prices, request.temperatures or (0.0,), conversations=conversations,
        max_new_tokens=request.max_new_tokens or config.max_new_tokens, folder=request.folder, top_k=request.top_k,
        depth=request.depth, drafter=kind,
    )  # fmt: skip


def check_priced(prices: Mapping[str, Prices], kinds: Iterable[str]) -> None:
    """
    Raises:
        UserError: a table of costs lacks one of these kinds of EAGLE heads.
    """
    for name in prices:
        table = table_of(name)
        for kind in {kind for kind in kinds if kind in methods.HEADS}:
            if table is not None and not table.has(kind):
                raise UserError(f"the costs {name} were measured without a {methods.DRAFTERS[kind]}: `harness costs` measures "
                                "those of a model that has one")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ready:
    """What a replay knows before a model is loaded. `request`: its dtype found; `records`: as `_chosen` has them; `asked`: the
    temperatures; `arms`: by temperature; `kinds`: of the heads that they draft with."""

    request: ReplayRequest
    config: ModelConfig
    records: Sequence[Record]
    asked: Collection[float]
    arms: Mapping[float, Sequence[Arm]]
    kinds: Collection[str]
    prices: dict[str, Prices]

    @property
    def threads(self) -> int:
        return self.request.threads or usable_cores()


def ready_for(request: ReplayRequest, over: ClusterRequest | None = None) -> Ready:
    """Vanilla's answers, made where there are none, and what is to be replayed over them. over: the cluster that makes them.

    Raises:
        UserError: bad input, or the ledger cannot be read.
    """
    if request.results is None:
        made = model_config(request.model or "smollm2-135m")
        request = replace(request, max_new_tokens=request.max_new_tokens or made.max_new_tokens)
        answers_made(made, request, over)
    there = list(read(request.results or request.folder))
    asked_for = [f"of {n} tokens" for n in (request.max_new_tokens,) if n] + [
        f"of source {s!r}" for s in (request.source,) if s != "auto"
    ]
    nothing = " ".join(
        [f"{request.results or request.folder} holds no answers of vanilla's to these tasks at these temperatures", *asked_for]
    )
    if not there:
        raise UserError(nothing)
    config = model_config(request.model or there[0]["model"])
    records = _chosen(there, request, config.name)
    asked = request.temperatures or {r["temperature"] for r in records}
    if not any(r["temperature"] in asked for r in records):
        raise UserError(nothing)
    prices = prices_of(config, request)
    dtypes = [r["dtype"] for r in records if r["method"] == VANILLA] or [r["dtype"] for r in records if not r.get("served")]
    if not dtypes:
        raise UserError(nothing)
    request = replace(request, dtype=request.dtype if request.dtype != "auto" else dtypes[0])
    arms = {t: arms_of(config, request, t) for t in {r["temperature"] for r in records} if t in asked}
    kinds = {arm.method.drafter or "" for of_temperature in arms.values() for arm in of_temperature}
    check_priced(prices, kinds)
    return Ready(request, config, records, asked, arms, kinds & {*methods.HEADS}, prices)


def replay(request: ReplayRequest) -> tuple[list[Replay], dict[str, Prices]]:
    """Replay what was not replayed before; -> all replays asked for, those that were there among them, and `prices_of`.

    Raises:
        UserError: bad input; the ledger, the rows or the replays cannot be read or written.
    """
    keep_freed_memory()
    torch.set_num_threads(request.threads or usable_cores())
    ready = ready_for(request)
    request = ready.request
    say(f"loading {ready.config.title} ...")
    loaded = load(ready.config, request.dtype, head=request.head, drafters=ready.kinds)
    own = [a for a in answered(ready.records, loaded) if a.record["temperature"] in ready.asked]
    of_one_kind([a.record for a in own], request.results or request.folder)
    tell_other_heads([arm for of_temperature in ready.arms.values() for arm in of_temperature], loaded)
    prompts, told = LedgerPrompts(request.prompts_dir), Told()
    found: list[Replay] = []
    with record.only_writer(request.folder), showing_progress("replay") as progress:
        done = {r.key: r for r in record.read(request.folder)}
        for answer in progress.each(own, "answer"):
            found += of_answer(loaded, answer, ready.arms[answer.record["temperature"]], done, prompts, request, told)
    for line in told.lines:
        say(line)
    return found, ready.prices


def of_answer(
    loaded: Loaded, answer: Answered, arms: Sequence[Arm], done: Mapping[record.Key, Replay], prompts: LedgerPrompts,
    request: ReplayRequest, told: Told,
) -> list[Replay]:  # fmt: skip
    """The replays of one answer, one an arm; new ones are written, and so are the rows that they took."""
    r = answer.record
    params = replace(answer.params, stop_ids=frozenset(loaded.config.stop_ids))
    found: dict[int, Replay] = {}
    by_rows: dict[tuple[str | None, int | None], list[int]] = {}  # the kind of head, and over how many frequent tokens
    for i, arm in enumerate(arms):
        key = (r["key"], arm.name, canonical_hash(arm.options), methods.code_sha(arm.name), _head_of(loaded, arm))
        if key in done:
            found[i] = done[key].model_copy(update={"preset": arm.preset})
        else:
            by_rows.setdefault((arm.method.drafter, arm.options.get("frequent")), []).append(i)
    if of_text := by_rows.pop((None, None), []):  # what drafts from the text has no rows: those of a head come with the text
        by_rows.setdefault(next(iter(by_rows), (None, None)), []).extend(of_text)
    for (kind, frequent), wanted in by_rows.items():
        store, text, rows, features = _rows_of(loaded, answer, prompts, request, told, kind, frequent)
        drafter = None
        if kind is not None:
            drafter = RowsDrafter(head_of(loaded, kind), rows, text.ids, len(text.prompt), features, frequent)
        before, new = rows.n, []
        began = time.perf_counter()
        with loaded.target.decoding():
            for i in wanted:
                made = replayed(arms[i], text, params, drafter if arms[i].method.drafter else None)
                told.tokens, told.asked, told.lacking = (
                    told.tokens + made.tokens,
                    told.asked + made.asked,
                    told.lacking + made.lacking,
                )
                new.append(_as_record(loaded, answer, arms[i], made))
                found[i] = new[-1]
        told.replaying_s += time.perf_counter() - began
        if rows.n > before and store is not None:
            store.write(r["key"], text, rows)
        record.append(request.folder, new)
    return [found[i] for i in sorted(found)]


def _rows_of(
    loaded: Loaded, answer: Answered, prompts: LedgerPrompts, request: ReplayRequest, told: Told, kind: str | None,
    frequent: int | None,
) -> tuple[Store | None, KnownText, Rows, Callable[[], torch.Tensor]]:  # fmt: skip
    """(store, text, rows, features): read, or drafted by the EAGLE head of that kind and kept."""
    key = answer.record["key"]
    real = head_of(loaded, kind) if kind is not None else None
    made: list[torch.Tensor] = []

    def fresh() -> KnownText:
        text, features = known_text(loaded, prompts, answer, real)
        made.append(features)
        return text

    def features() -> torch.Tensor:
        if not made:
            fresh()
        return made[0]

    if real is None:
        return None, fresh(), Rows(), features
    head = loaded.drafter_id(kind, with_frequent=frequent is not None) or ""
    drawn = Drawn(loaded.config.name, loaded.identity.id, head, loaded.dtype, str(frequent or ""))
    store = Store(request.folder, drawn)
    there = store.read(key)
    if there is not None:
        text, rows = there
        if text.answer != list(answer.record["token_ids"]):
            raise UserError(f"the pool of {key} is over another answer than the ledger's: delete {request.folder}/pools")
        return store, text, rows, features
    text, rows = fresh(), Rows()
    positions = range(1, len(text.answer))
    if len(positions):
        drafter = RowsDrafter(real, rows, text.ids, len(text.prompt), features, frequent)
        began = time.perf_counter()
        with loaded.target.decoding(), torch.inference_mode():
            drafter.draft(positions, request.top_k, request.depth)
        told.drafting_s += time.perf_counter() - began
        told.positions += len(positions)
        store.write(key, text, rows)
    return store, text, rows, features


def _head_of(loaded: Loaded, arm: Arm) -> str | None:
    """What decides what this arm's drafter drafts; None of a method without one."""
    kind = arm.method.drafter
    return loaded.drafter_id(kind, with_frequent=arm.options.get("frequent") is not None) if kind else None


def _as_record(loaded: Loaded, answer: Answered, arm: Arm, made: Replayed) -> Replay:
    r: Mapping[str, Any] = answer.record
    copied = (
        "model",
        "task",
        "source",
        "sample_id",
        "turn",
        "repeat",
        "temperature",
        "top_p",
        "max_new_tokens",
        "n_prompt",
        "dtype",
    )
    return Replay(
        answer=r["key"], target_id=loaded.identity.id, head_id=_head_of(loaded, arm), drafter=arm.method.drafter, method=arm.name,
        preset=arm.preset, options=dict(arm.options), code_sha=methods.code_sha(arm.name), tokens=made.tokens,
        accepted=made.accepted, sizes=made.sizes, calls=made.calls, asked=made.asked, lacking=made.lacking,
        **{name: r[name] for name in copied},
    )  # fmt: skip
