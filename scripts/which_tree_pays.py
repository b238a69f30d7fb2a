"""Makes what docs/which-tree-pays.md shows from a ledger with vanilla's answers: choices, replays, tables, plot.

python scripts/which_tree_pays.py --results results/which-tree-pays --costs FILE ...     # hours; goes on where it stopped

1. `harness replay --choose`: each policy's options for every costs and every point of the plane, on held-out prompts.
2. `harness replay --choices`: those options on the tasks' answers, and random-stop with as many calls as radar made, as often.
3. tables/which-tree-pays.md and .csv, radar-saves.md and .csv, regions.csv and regions.png beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

import methods
from harness.common.errors import say
from harness.common.files import write_file
from harness.forms.figure import save_figure
from harness.forms.table import write_forms
from harness.replay import choices, regions
from harness.replay.record import Replay
from harness.replay.saved import as_often_as, saving_table
from harness.replay.session import ReplayRequest, choose_options, replay
from harness.replay.tables import chosen_table
from methods.engine.stop_net import shipped


def main() -> None:
    """Raises UserError for bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, required=True, help="a ledger with vanilla's answers")
    parser.add_argument("--costs", action="append", default=[], help="as of harness replay; repeatable")
    parser.add_argument("--temperature", action="append", type=float, help="repeatable (default: 0 and 1)")
    parser.add_argument("--conversations", type=int, default=24, help="held-out prompts to choose on")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of answers to choose on")
    parser.add_argument("--limit", type=int, default=None, help="conversations a task")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--model", default=None)
    parser.add_argument("--plane-limit", type=int, default=20, help="conversations a task, of the plane (default: 20)")
    parser.add_argument("--no-plane", action="store_true", help="leave the plane of costs out")
    given = parser.parse_args()
    temperatures = tuple(given.temperature or (0.0, 1.0))
    base = ReplayRequest(
        policies=("policies",), results=given.results, model=given.model, temperatures=temperatures, limit=given.limit,
        max_new_tokens=given.max_new_tokens, threads=given.threads, costs=tuple(given.costs), as_if=True,
    )  # fmt: skip
    named = _choices(base, given.results / "choices.json", given.conversations)
    plane = []
    if not given.no_plane:
        rules = tuple(n for n in methods.names(exact=True, group=methods.POLICIES) if not methods.get(n).replay_only)
        over_plane = replace(base, policies=rules, costs=regions.PLANE)
        plane = _choices(over_plane, given.results / "choices-plane.json", given.conversations)
    base = replace(base, max_new_tokens=None)  # the ledger's own
    named = [c for c in named if c.method != "random-stop"]
    found, _ = replay(replace(base, policies=("eagle2",), choices=tuple(named)))
    named += as_often_as(named, found, "radar")
    named += [c for t in temperatures for costs in dict.fromkeys(c.costs for c in named) for c in _as_it_is(found, t, costs)]
    found, prices = replay(replace(base, policies=("eagle2",), choices=tuple(named)))
    write_forms(chosen_table(found, named, prices), given.results / "tables")
    for t in temperatures:  # RADAR's own claim: over its own tree with every call
        own = tuple(f"radar+weights={name}" for name in shipped() if name.endswith(f"-t{t:g}"))
        found += replay(replace(base, temperatures=(t,), policies=("eagle2+depth=8", *own)))[0]
    write_forms(saving_table(found, named, prices), given.results / "tables")
    if plane:
        few = replace(base, limit=given.plane_limit if given.limit is None else min(given.limit, given.plane_limit))
        found, _ = replay(replace(few, policies=(), choices=tuple(plane), costs=regions.PLANE))
        drawn = {t: regions.regions(found, plane, t) for t in temperatures}
        rows = pd.DataFrame([row for t, rs in drawn.items() for row in regions.rows_of(rs, t)])
        write_file(given.results / "tables" / "regions.csv", rows.to_csv(index=False, float_format="%.6g"))
        save_figure(regions.figure(drawn), given.results / "tables" / "regions")


def _as_it_is(replays: Sequence[Replay], temperature: float, costs: str) -> Iterator[choices.Choice]:
    """EAGLE-2 at the paper's options, which nobody chose, beside what was chosen under some costs; nothing without answers."""
    for options in [r.options for r in replays if (r.method, r.preset, r.temperature) == ("eagle2", "paper", temperature)][:1]:
        yield choices.Choice("eagle2", temperature, costs, options, float("nan"), float("nan"), 1, 0)


def _choices(request: ReplayRequest, file: Path, conversations: int) -> list[choices.Choice]:
    """Made, or read where they were made before."""
    if file.exists():
        say(f"{file} is there already: its choices are taken")
    else:
        choices.save(choose_options(request, conversations), file)
    return choices.read(file)


if __name__ == "__main__":
    main()
