"""An audit shared out over a cluster: workers make findings, this process keeps and judges them. It loads no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from harness.audit.bench import DONE, FINDING, Came, Given, Opened, Piece, Setup
from harness.audit.keeper import Finding
from harness.audit.request import AuditRequest
from harness.audit.store import Store
from harness.audit.verdicts.verdict import Verdict
from harness.cluster.facts import facts_here
from harness.cluster.host import Message
from harness.cluster.needs import needs_of
from harness.cluster.pool import LOADS_IN, Pool
from harness.cluster.rays import connected
from harness.cluster.request import ClusterRequest
from harness.cluster.shares import PER_WORKER, Share, cut
from harness.common.errors import duration
from harness.common.stopping import draining
from harness.load.config import SUFFIXES, ModelConfig

BENCH = "harness.audit.bench:AuditBench"
Tell = Callable[[str], None]


class AuditDesk:
    """The driver's side of an audit."""

    def __init__(self, setup: Setup, over: ClusterRequest, store: Store, tell: Tell) -> None:
        self.timeout = over.worker_timeout or LOADS_IN
        self.told: Opened | None = None
        self.came: dict[Piece, Came] = {}
        self.lost_rows: list[Verdict] = []
        self._setup, self._store, self._tell = setup._replace(request=_placed(setup.request)), store, tell
        self._n = self._done = 0
        self._began = self._last = time.monotonic()

    def setup(self) -> Setup:
        return self._setup

    def opened(self, told: Opened) -> str | None:
        if self.told is None:
            self.told = told
            self._n = sum(n for _, _, n in told.pieces)
            self._tell(f"{self._n:,} findings in {len(told.pieces):,} pieces; what is in {self._store.path} is not made again")
            self._began = time.monotonic()
        same = told.sha == self.told.sha
        return None if same else "its findings are not the first worker's: model, machine, threads or engine are others there"

    def begin(self) -> None:
        return None

    def given(self, item: Piece, told: Opened) -> Given:
        return Given(item, tuple(f for f in self._store if f.get("dtype", "") == item.dtype))

    def took(self, item: Piece | None, message: Message) -> None:
        kind, body = message
        if kind == FINDING:
            about, values = body
            there = self._store.get(about)
            if there is None or "error" in there:
                self._store.add(about, values)
            if "error" in values:
                self._tell(f"{' '.join(str(about[k]) for k in ('dtype', 'kind', 'method', 'case', 'prompt') if k in about)} "
                           f"raised {values['error']}")  # fmt: skip
        elif kind == DONE:
            assert item is not None and self.told is not None
            self.came[item] = body
            self._done += next(n for piece, _, n in self.told.pieces if piece == item)
            self._say_how_far()

    def _say_how_far(self) -> None:
        now = time.monotonic()
        if self._done and now - self._last > (30.0 if self._last > self._began else 5.0):
            self._last, spent = now, now - self._began
            left = spent * (self._n - self._done) / self._done
            self._tell(f"{self._done}/{self._n} findings, {duration(spent)} spent, about {duration(left)} left")

    def ended(self, item: Piece) -> None: ...

    def lost(self, item: Piece) -> None: ...

    def unplaced(self, item: Piece) -> None: ...

    def gave_up(self, item: Piece, why: str) -> None:
        assert self.told is not None
        name = next(name for piece, name, _ in self.told.pieces if piece == item)
        self.lost_rows.append(Verdict.missing(name, "all", f"a piece of it was given up: {why}"))

    def shards(self, shards: Sequence[Share]) -> None: ...

    def touched(self) -> list[Finding]:
        """What the audit is about, in the order of its plan."""
        assert self.told is not None
        found = {f["key"]: f for f in self._store}
        keys = dict.fromkeys(key for piece, _, _ in self.told.pieces if piece in self.came for key in self.came[piece].touched)
        return [found[key] for key in keys if key in found]

    def rows(self) -> list[Verdict]:
        """Those that need no finding, each once: every worker that loads a dtype may have said the same."""
        assert self.told is not None
        of_pieces = [row for piece, _, _ in self.told.pieces if piece in self.came for row in self.came[piece].rows]
        return list(dict.fromkeys([*self.told.rows, *of_pieces, *self.lost_rows]))


def _placed(request: AuditRequest) -> AuditRequest:
    """The same with paths that hold in any folder: a worker's is not the driver's."""
    return replace(
        request,
        model=str(Path(request.model).resolve()) if request.model.endswith(SUFFIXES) else request.model,
        ledgers=tuple(path.resolve() for path in request.ledgers),
        prompts_dir=request.prompts_dir and request.prompts_dir.resolve(),
        head=request.head and request.head.resolve(),
    )


def found_over(
    request: AuditRequest, config: ModelConfig, kinds: Collection[str], over: ClusterRequest, store: Store, tell: Tell
) -> AuditDesk:  # fmt: skip
    """Make what is missing of an audit on a cluster.

    Raises:
        UserError: no cluster, no node that can do it, or the store cannot be written.
    """
    with connected(over.address) as cluster, ExitStack() as work:
        desk = AuditDesk(Setup(request, over.includes), over, store, tell)
        needs = needs_of(
            BENCH, config, over, threads=request.n_threads, dtype=request.dtypes[0] if request.dtypes else "float64",
            head=request.head, kinds=kinds, paths=request.ledgers,
        )  # fmt: skip
        is_draining = work.enter_context(draining("stopping: pieces under way are finished; again drops them"))
        pool = Pool(cluster, needs, desk, facts_here(needs.asked), is_draining)
        tell(f"{pool.survey()} workers of {request.n_threads} threads at once")
        pool.first()
        by_dtype: dict[str, list[Piece]] = {}
        for piece, _, _ in desk.told.pieces if desk.told else ():
            by_dtype.setdefault(piece.dtype, []).append(piece)
        n = over.shards or PER_WORKER * pool.room
        pool.work([share for pieces in by_dtype.values() for share in cut(pieces, n, lambda piece: piece)])
    return desk
