"""Which policy pays where: over a plane of costs, what a call of the drafter takes and what verifying takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import methods
from harness.forms.figure import AS_WRITTEN
from harness.ledger.record import canonical_hash
from harness.metrics.definitions import Estimate, estimated
from harness.replay.choices import Choice
from harness.replay.price import prices_named
from harness.replay.record import Replay, of_methods
from harness.replay.tables import CONTROL, costs, faster, speedup, strata

CALLS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
VERIFIED = (1.0, 1.1, 1.3, 1.7, 2.5, 4.5)
PLANE = tuple(f"call={call:g},verify={verify:g}" for call, verify in itertools.product(CALLS, VERIFIED))
"""Names of costs (`methods.engine.relative_costs`): a call of the drafter, and verifying 60 rows, in plain steps."""


@dataclass(frozen=True, slots=True)
class Region:
    """A point of the plane: the policy that was fastest there on held-out conversations, and its speed and its gain over the
    best fixed tree on others.

    `control`: that tree's speed. `is_shown`: the interval of the gain is above 1.
    """

    call: float
    verify: float
    method: str
    options: Mapping[str, Any]
    speed: Estimate
    control: Estimate
    gain: Estimate

    @property
    def is_shown(self) -> bool:
        return self.gain.ci95 is not None and self.gain.ci95[0] > 1


def regions(replays: Sequence[Replay], choices: Sequence[Choice], temperature: float) -> list[Region]:
    """The points of the plane that choices were made at. Bounds, which know what vanilla will say, do not win.

    Which policy is fastest is decided on the held-out conversations, as its options are; speed and gain are of the others.
    """
    by_arm = {(method, sha): rs for (t, method, _, sha), rs in of_methods(replays) if t == temperature}
    found = []
    for name, price in prices_named(PLANE).items():
        own = [c for c in choices if c.temperature == temperature and c.costs == name and not methods.get(c.method).replay_only]
        priced = {c.method: (c, costs(by_arm[key], price)) for c in own
                  if (key := (c.method, canonical_hash(dict(c.options)))) in by_arm}  # fmt: skip
        if CONTROL not in priced:
            continue
        speeds = {m: estimated(list(strata([s]).values()), speedup, 0.0) for m, (_, s) in priced.items()}
        best = max(priced, key=lambda m: (priced[m][0].speedup, m == CONTROL))
        both = strata([priced[best][1], priced[CONTROL][1]])
        call, verify = (float(part.partition("=")[2]) for part in name.split(","))
        found.append(Region(call, verify, best, priced[best][0].options, speeds[best], speeds[CONTROL],
                            estimated(list(both.values()), faster, 0.0)))  # fmt: skip
    return found


def rows_of(found: Sequence[Region], temperature: float) -> Iterator[dict[str, Any]]:
    """As rows of a CSV."""
    for r in found:
        low, high = r.gain.ci95 or (None, None)
        yield {"temperature": temperature, "call": r.call, "verify": r.verify, "method": r.method, "speed": r.speed.value,
               f"speed of {CONTROL}": r.control.value, "gain": r.gain.value, "gain_low": low, "gain_high": high,
               "options": " ".join(f"{k}={v}" for k, v in r.options.items() if k != "costs")}  # fmt: skip


def figure(found: Mapping[float, Sequence[Region]]) -> Figure:
    """Per temperature a plane: colours name the fastest policy, numbers are its speed and its gain over the best fixed tree."""
    names = sorted({r.method for rs in found.values() for r in rs}, key=lambda n: (n != CONTROL, n))
    colours = ["#d9d9d9", *colormaps["Set3"].colors][: len(names)] if names else []  # type: ignore[attr-defined]
    style: Any = AS_WRITTEN
    with rc_context(style):
        made = Figure(figsize=(5.4 * max(len(found), 1), 4.6))
        axes = made.subplots(1, max(len(found), 1), squeeze=False)
        for ax, (t, rs) in zip(axes[0], sorted(found.items()), strict=False):
            xs, ys = sorted({r.call for r in rs}), sorted({r.verify for r in rs})
            grid = [[-1] * len(xs) for _ in ys]
            for r in rs:
                i, j = ys.index(r.verify), xs.index(r.call)
                grid[i][j] = names.index(r.method)
                gain = f"{(r.gain.value or 1) - 1:+.1%}" if r.method != CONTROL else ""
                ax.text(j, i, f"{r.speed.value:.2f}×\n{gain}", ha="center", va="center", fontsize=7.5,
                        fontweight="bold" if r.is_shown else "normal")  # fmt: skip
            ax.imshow(grid, origin="lower", aspect="auto", cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) - 0.5)
            ax.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
            ax.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
            ax.set_xlabel("a call of the drafter, in plain steps")
            ax.set_ylabel("verifying 60 rows, in plain steps")
            ax.set_title(f"T = {t:g}")
        handles = [Patch(color=c) for c in colours]
        made.legend(handles, names, ncols=min(len(names), 6), loc="lower center", fontsize=8)
        made.tight_layout(rect=(0, 0.07, 1, 1))
    return made
