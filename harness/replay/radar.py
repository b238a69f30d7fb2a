"""`harness train-policy radar`: from the pools of a replay to the weights of a policy that says when to stop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from harness.common.bounds import bounded
from harness.common.cores import usable_cores
from harness.common.errors import UserError, say
from harness.common.files import whole_file
from harness.forms.table import Section, Table
from harness.replay.round_times import RoundTimes, round_times
from harness.replay.rounds import Rounds, recorded
from harness.replay.stop_training import (
    HELD_OUT,
    Learner,
    Objective,
    Outcome,
    StopSettings,
    Trained,
    at,
    best_fixed,
    best_places,
    law_of,
    outcome,
    stop_settings,
    train,
)
from harness.replay.store import Drawn
from methods.engine.stop_net import pinned

EVERY = 10  # epochs between two lines


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRequest:
    """One policy to train. `results`: where `harness replay` left its pools; `temperatures`: of the answers; none: all.

    Raises:
        UserError: a value that cannot be.
    """

    results: Path
    out: Path
    costs: str = "gpu-radar"
    objective: Objective = "mean"
    temperatures: tuple[float, ...] = ()
    top_k: int = 10
    depth: int = 8
    total: int = 59
    look: float | None = None
    changes: tuple[str, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "total", "threads"):
            bounded(f"--{name.replace('_', '-')}", getattr(self, name))
        bounded("--depth", self.depth, 2)
        if self.objective not in get_args(Objective):
            raise UserError(f"--objective {self.objective!r}; known: {', '.join(get_args(Objective))}")
        if self.look is not None and not self.look >= 0:
            raise UserError(f"--look is {self.look}; it must be at least 0")
        _ = self.settings

    @property
    def settings(self) -> StopSettings:
        return stop_settings(self.changes)


def train_radar(request: PolicyRequest) -> Table:
    """Write the weights; -> what the policy gives on held-out rounds, beside rules without weights. Of every `HELD_OUT`
    conversations one chooses the epoch, and the table is of another: no choice has seen it.

    Raises:
        UserError: bad input, too few pools, or a file that cannot be written.
    """
    torch.set_num_threads(request.threads or usable_cores())
    settings, tree = request.settings, (request.top_k, request.depth, request.total)
    rounds, drawn = recorded(request.results, request.temperatures, *tree, settings.rounds == "every")
    part, visited = rounds.conversation % HELD_OUT, rounds.visited
    learn = rounds.take(part < HELD_OUT - 2)
    shown, judge = (rounds.take((part == n) & visited) for n in (HELD_OUT - 2, HELD_OUT - 1))
    context, accepted = int(rounds.length[visited].mean()), round(float(rounds.accepted[visited, -1].mean()))
    times = round_times(request.costs, *tree, look=request.look, context=context, accepted=accepted)
    say(f"{len(learn):,} rounds to learn from, {len(judge):,} that choose the epoch, {len(shown):,} that the table is of; in "
        f"plain steps a call costs {times.call:.4f}, a look {times.look:.4f}")  # fmt: skip
    if not len(shown):
        raise UserError(f"no rounds are left that the table is of: more texts are needed, two of every {HELD_OUT} are held out")

    def told(epoch: int, found: Outcome) -> None:
        if epoch % EVERY == EVERY - 1 or not epoch:
            say(f"epoch {epoch + 1} of {settings.epochs}, where it is chosen: E[a/t] {found.mean:.4f}, E[a+1]/E[t] "
                f"{found.ratio:.4f}, {found.calls:.2f} calls a round")  # fmt: skip

    trained = train(learn, judge, times, request.objective, settings, told)
    halved = trained.learner.half()
    _write(halved, request, drawn, times, len(learn))
    say(f"wrote {pinned(str(request.out))}")
    return _table(halved.float(), learn, shown, times, request, trained)


def _write(halved: Learner, request: PolicyRequest, drawn: Drawn, times: RoundTimes, n: int) -> None:
    facts = {
        "policy": "radar", "objective": request.objective, "costs": times.name, "model": drawn.model, "dtype": drawn.dtype,
        "tree": f"{request.top_k}/{request.depth}/{request.total}", "target_id": drawn.target_id, "head_id": drawn.head_id,
        "temperatures": " ".join(f"{t:g}" for t in request.temperatures) or "all", "rounds": str(n),
        "times": json.dumps(np.round(times.of_round, 5).tolist()), "settings": request.settings.model_dump_json(),
    }  # fmt: skip
    try:
        with whole_file(request.out) as fresh:
            save_file({k: v.contiguous() for k, v in halved.state_dict().items()}, fresh, facts)
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot write {request.out}: {e}") from None


def _table(learner: Learner, learn: Rounds, shown: Rounds, times: RoundTimes, request: PolicyRequest, trained: Trained) -> Table:
    t, accepted, n = times.of_round, shown.accepted, shown.most
    unlooked = times.without_looks
    law = law_of(learner, shown.states)
    fixed = best_fixed(learn.accepted, unlooked, request.objective)
    rules = {
        "radar": (law, t),
        "every call": (at(np.full(len(shown), n - 1), n), unlooked),
        f"fixed, best on what it learned from: {fixed + 1} calls": (at(np.full(len(shown), fixed), n), unlooked),
        "random, as often as radar": (np.broadcast_to(law.mean(0), law.shape), unlooked),
        "oracle": (at(best_places(accepted, unlooked, request.objective), n), unlooked),
    }
    found = {name: outcome(np.asarray(rule), accepted, cost) for name, (rule, cost) in rules.items()}
    rows = [{"rule": name, "calls a round": f"{o.calls:.2f}", "E[a/t]": f"{o.mean:.3f}", "E[a+1]/E[t]": f"{o.ratio:.3f}"}
            for name, o in found.items()]  # fmt: skip
    numbers = [{"rule": name, "calls": o.calls, "mean": o.mean, "ratio": o.ratio} for name, o in found.items()]
    facts = (
        f"{len(shown):,} rounds of {len(np.unique(shown.conversation))} conversations that no choice has seen; costs: "
        f"{times.name}; epoch {trained.best + 1} of {len(trained.epochs)} is kept",
    )
    notes = (
        "a: accepted draft tokens; t: a round's time in steps of plain decoding, the looks of radar's network among them. The "
        "rounds are those that a decode with every call starts.",
    )
    section = Section(f"radar, {request.objective}", facts, pd.DataFrame(rows))
    return Table("train-policy", (section,), notes, pd.DataFrame(numbers))
