"""tau of the paper's methods by replay, of as many prompts as vanilla answered: a run gives costs, and checks the replay."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from harness.common.errors import UserError
from harness.common.names import SIX_TASKS
from harness.ledger.record import Record, canonical_hash
from harness.metrics.by_definition import taus
from harness.metrics.definitions import Estimate, estimated
from harness.metrics.reference_formula import Booked
from harness.paper.published import MEAN
from harness.replay.record import Replay
from harness.replay.tables import counts, strata, tau

Kind = tuple[str | None, str]
"""What decides what the drafter drafts, and the hash of the options."""


@dataclass(frozen=True, slots=True)
class ReplayedTau:
    """tau pooled, and by the definitions of others (`harness.metrics.by_definition`)."""

    tau: Estimate
    taus: Mapping[str, float]


class ReplayedTaus:
    """Replays at one preset of answers that are counted, ready to be asked for a cell. answers: keys of vanilla's records; runs:
    of the methods that were run, whose head and options the replays must have, too.

    Raises:
        UserError: replays of a method that was not run are of several heads or options: nobody says which are meant.
    """

    def __init__(self, replays: Iterable[Replay], answers: Iterable[str], runs: Iterable[Record], preset: str):
        counted, self._cells = set(answers), dict[tuple[str, str, float], dict[str, Replay]]()
        ran: dict[str, set[Kind]] = {}
        for run in runs:
            ran.setdefault(run["method"], set()).add((run["head_id"], canonical_hash(run["options"])))
        kinds: dict[str, set[Kind]] = {}
        for r in replays:
            kind = (r.head_id, canonical_hash(r.options))
            if r.answer not in counted or r.preset != preset or kind not in ran.get(r.method, {kind}):
                continue
            kinds.setdefault(r.method, set()).add(kind)
            self._cells.setdefault((r.method, r.task, r.temperature), {})[r.answer] = r  # of two by other code the later
        if mixed := sorted(name for name, found in kinds.items() if len(found) > 1):
            raise UserError(f"the replays of {', '.join(mixed)} at {preset!r} are of several heads or options: keep each in a "
                            "folder of its own")  # fmt: skip

    def __call__(self, method: str, task: str, temperature: float) -> ReplayedTau | None:
        """None where nothing was replayed, or for a mean where one of the six tasks is missing."""
        names = SIX_TASKS if task == MEAN else (task,)
        cells = [list(own.values()) for name in names if (own := self._cells.get((method, name, temperature)))]
        if len(cells) < len(names):
            return None
        by_task = strata([counts([r for own in cells for r in own])])
        others = [taus([_booked(r) for r in own if r.repeat == 0]) for own in cells]
        mean = {name: sum(one[name] for one in others) / len(others) for name in others[0]}
        return ReplayedTau(estimated(list(by_task.values()), tau, 0.0), mean)


def _booked(r: Replay) -> tuple[Hashable, Booked]:
    return (r.task, r.sample_id), Booked(sum(r.accepted) + len(r.accepted), len(r.accepted))
