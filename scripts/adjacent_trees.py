"""Makes what docs/adjacent-trees.md shows: adjacency-adaptive trees on pictures, against fixed trees of the same size.

python scripts/adjacent_trees.py --out results/adjacent-trees --costs FILE     # goes on where it stopped

1. Vanilla's pictures of the task `digits`, at both temperatures, as `harness run` makes them.
2. On the first pictures: every candidate of every adjacency and step, and a grid of fixed trees, replayed; per temperature and
   costs the fastest is chosen. These replays are in choosing/, tens of MB that nothing needs any more when it is over.
3. On the others, which no choice has seen: what was chosen, EAGLE-2, and per arm the fixed tree of the same mean size, as wide
   and deep as was fastest on the first ones: in the mean as wide as the arm's trees, or as EAGLE-2's.
4. tables/adjacent-trees.md and .csv, tables/trees-by-region.md and .csv, and tables/mosaics.png: pictures with heat maps.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import methods
from harness.common.errors import UserError
from harness.common.files_written import files_written
from harness.forms.figure import save_figure
from harness.forms.table import write_forms
from harness.ledger.ledger import read
from harness.replay.adjacent import Compared, Setting, adjacency_table, equal_tree, fastest
from harness.replay.mosaics import map_of, mosaics, region_table
from harness.replay.record import Replay
from harness.replay.session import ReplayRequest, replay
from harness.show.mosaic import picture
from methods.policies.adt import ADJACENCY, STEPS

COSTS = ("call=0.04,verify=1.05", "call=0.1,verify=1.3", "call=0.2,verify=2.5")
SHAPES = [
    {"top_k": k, "depth": d, "total": n}
    for k, d, n in itertools.product((1, 2, 4, 10), (1, 2, 3, 4, 6, 8, 12, 16), (1, 2, 4, 8, 12, 20, 40, 59))
    if d <= n <= k + (d - 1) * k * k
]  # as deep as the adaptive ones may go
DRAWN = 5  # pictures
FIXED = "eagle2-grid"  # EAGLE-2's tree, which runs the drafter on no node below which nothing can be kept, as `adt` does not
DEEPER = 4  # such trees often end before their last level: so many depths are tried


def arms() -> list[tuple[str, str]]:
    """(adjacency, step): a tree that takes nothing from its neighbours has no step."""
    return [(a, s) for a in ADJACENCY if a != "none" for s in STEPS] + [("none", "")]


def word(method: str, preset: str, options: Mapping[str, Any]) -> str:
    """A policy as `--policy` takes it."""
    return "+".join([method, preset, *(f"{k}={v}" for k, v in options.items())])


def candidates(adjacency: str, step: str, few: bool) -> list[str]:
    """All of `adt`'s for one arm, each once: without neighbours, beta and bounds mean nothing."""
    found: dict[str, None] = {}
    for c in methods.get("adt").candidates[:: 7 if few else 1]:
        if step:
            options = {"adjacency": adjacency, "step": step, **c}
        else:
            k, d = c["top_k"], c["most_depth"] // 2
            options = {"adjacency": adjacency, "top_k": k, "most_top_k": k, "depth": d, "total": c["total"]}
        found.setdefault(word("adt", "image", options))
    return list(found)


def own(replays: Iterable[Replay], t: float, adjacency: str, step: str) -> list[Replay]:
    return [r for r in replays if r.method == "adt" and r.temperature == t and r.options["adjacency"] == adjacency
            and step in ("", r.options["step"])]  # fmt: skip


def of(replays: Iterable[Replay], t: float, method: str, options: Mapping[str, Any]) -> list[Replay]:
    return [r for r in replays if (r.method, r.temperature) == (method, t) and options.items() <= r.options.items()]


def of_size(replays: list[Replay]) -> list[dict[str, Any]]:
    """Settings of fixed trees of the mean size: as wide as the trees were in the mean or as EAGLE-2's, and of several depths."""
    shapes = [equal_tree(replays), equal_tree(replays, methods.get("eagle2").options["top_k"])]
    return [{**shape, "depth": shape["depth"] + more} for shape in shapes for more in range(DEEPER)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="a ledger, made or gone on with")
    parser.add_argument("--costs", action="append", default=[], help="as of harness replay; repeatable; beside three flat ones")
    parser.add_argument("--as-if", action="store_true", help="as of harness replay: take costs of another target")
    parser.add_argument("--temperature", action="append", type=float, help="repeatable (default: 0 and 1)")
    parser.add_argument("--limit", type=int, default=40, help="pictures, those to choose on among them")
    parser.add_argument("--choose-on", type=int, default=8, help="the first so many are chosen on, and reported nowhere")
    parser.add_argument("--max-new-tokens", type=int, default=None)
    parser.add_argument("--dtype", default="float32", help="of the answers, and so of all")
    parser.add_argument("--model", default="digits-mosaic")
    parser.add_argument("--task", default="digits")
    parser.add_argument("--few", action="store_true", help="a seventh of the candidates and of the grid: to try the script")
    given = parser.parse_args()
    temperatures = tuple(given.temperature or (0.0, 1.0))
    base = ReplayRequest(
        policies=("eagle2",), model=given.model, tasks=(given.task,), temperatures=temperatures, limit=given.limit,
        max_new_tokens=given.max_new_tokens, out=given.out, costs=(*COSTS, *given.costs), as_if=given.as_if, source="bundled",
        dtype=given.dtype, depth=max(shape["depth"] for shape in SHAPES),
    )  # fmt: skip
    shapes = SHAPES[:: 7 if given.few else 1]
    tried = [w for arm in arms() for w in candidates(*arm, given.few)] + [word(FIXED, "paper", s) for s in shapes]
    made, prices = replay(base)
    base = replace(base, results=given.out)  # its answers are there now
    first = list(dict.fromkeys(r.sample_id for r in made))[: given.choose_on]
    if not 0 < len(first) < len({r.sample_id for r in made}):
        raise UserError(f"--limit {given.limit} --choose-on {given.choose_on}: there must be pictures to choose on, and others")
    held, _ = replay(replace(base, policies=tuple(tried), limit=len(first), out=given.out / "choosing"))
    settings = []
    for t in temperatures:
        chosen: dict[tuple[str, str, str], dict[str, Any]] = {}
        for costs, price in prices.items():
            for arm in arms():
                chosen[costs, *arm] = fastest(own(held, t, *arm), price)
            fixed = [r for r in held if r.method == FIXED and r.temperature == t]
            chosen[costs, "grid", ""] = fastest(fixed, price)
        at = replace(base, temperatures=(t,))
        names = {k: FIXED if k[1] == "grid" else "adt" for k in chosen}
        words = dict.fromkeys(word(names[k], "paper", options) for k, options in chosen.items())
        found = [r for r in replay(replace(at, policies=("eagle2", *words)))[0] if r.sample_id not in first]
        replays = {k: of(found, t, names[k], options) for k, options in chosen.items()}
        sizes = {k: of_size(rs) for k, rs in replays.items() if k[1] != "grid"}
        words = dict.fromkeys(word(FIXED, "paper", options) for several in sizes.values() for options in several)
        trial = replace(at, policies=tuple(words), limit=len(first), out=given.out / "choosing")
        tried_sizes = replay(trial)[0]
        equal = {
            k: fastest((r for options in several for r in of(tried_sizes, t, FIXED, options)), prices[k[0]])
            for k, several in sizes.items()
        }  # fmt: skip
        words = dict.fromkeys(word(FIXED, "paper", options) for options in equal.values())
        found += [r for r in replay(replace(at, policies=tuple(words)))[0] if r.sample_id not in first]
        found = list({r.key: r for r in found}.values())
        paper = [r for r in made if r.temperature == t and r.sample_id not in first]
        for costs, price in prices.items():
            compared = [Compared(*arm, replays[costs, *arm], of(found, t, FIXED, equal[costs, *arm])) for arm in arms()]
            settings.append(Setting(t, price, compared, paper, replays[costs, "grid", ""], len(first)))
    table = adjacency_table(settings)
    written = write_forms(table, given.out / "tables")
    records = {r["key"]: r for r in read(given.out) if r["method"] == "vanilla" and not r["is_warmup"]}
    pictures = {key: picture(r) for key, r in records.items()} if given.task == "digits" else {}
    if pictures:
        by_arm = {s.temperature: _regions_of(s) for s in reversed(settings)}  # under the first of the costs
        by_arm = dict(sorted(by_arm.items()))
        written += write_forms(region_table(by_arm, pictures, next(iter(prices))), given.out / "tables")
        for t, named in by_arm.items():
            written += save_figure(_picture(named, pictures), given.out / "tables" / f"mosaics-T{t:g}")
    print(files_written(written))


def _regions_of(s: Setting) -> dict[str, Any]:
    by_name = {(c.adjacency, c.step): c for c in s.compared}
    above, before = by_name["above", "bisection"], by_name["previous-round", "bisection"]
    return {"EAGLE-2": s.fixed, "above": above.replays, "previous-round": before.replays, "fixed, size of above": above.equal}


def _picture(named: Mapping[str, Any], pictures: Mapping[str, Any]) -> Any:
    """The first pictures that are reported on: accepted tokens of the step that made a pixel, and the nodes it verified."""
    rows: dict[str, list[Any]] = {}
    answers = [r.answer for r in named["EAGLE-2"]][:DRAWN]
    for name in ("EAGLE-2", "above"):
        by_answer = {r.answer: r for r in named[name]}
        rows[f"accepted,\n{name}"] = [map_of(by_answer[a], by_answer[a].accepted) for a in answers]
    by_answer = {r.answer: r for r in named["above"]}
    rows["nodes,\nabove"] = [map_of(by_answer[a], by_answer[a].sizes) for a in answers]
    return mosaics([pictures[a] for a in answers], rows)


if __name__ == "__main__":
    main()
