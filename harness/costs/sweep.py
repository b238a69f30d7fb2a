"""Speed by context and tree size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure

from harness.common.files import write_file
from harness.forms.figure import RC, save_figure
from harness.load.model import Loaded
from harness.watch.run import names_of, settled
from methods import Arm
from methods.base import SamplerParams


def sweep(
    loaded: Loaded,
    arms: Sequence[tuple[str, Arm]],
    contexts: Sequence[int],
    text: Sequence[int],
    params: SamplerParams,
    rounds: int = 3,
) -> Iterator[list[dict[str, Any]]]:
    """Yield, for each context, a row for each (label, arm): tokens per second of decoding alone, the best of `rounds`.

    Prompts are cut from `text` (token ids). Contexts that the text or the model does not reach are left out.
    """
    decoders = {label: arm.method.build(**arm.options) for label, arm in arms}
    for context in contexts:
        ids = list(text[:context])
        if len(ids) < context or context + params.max_new_tokens > loaded.config.context_length:
            continue
        best: dict[str, tuple[float, float, float]] = {}
        for _ in range(rounds):
            for label, arm in arms:
                kind = arm.method.drafter
                decode = partial(decoders.__getitem__, label)
                seen = settled(decode, ids, loaded.target, loaded.drafter_of(kind), params, names_of(loaded, kind))
                made, seconds = seen.generation, seen.wall_s - seen.generation.prefill_s
                assert made.trace is not None
                steps, tokens = len(made.trace.accepted), len(made.token_ids) - 1
                best[label] = max(best.get(label, (0.0, 0.0, 0.0)), (tokens / seconds, tokens / steps, 1e3 * seconds / steps))
        yield [
            {"context": context, "arm": label, "method": arm.name, "tree": arm.options.get("total", 0),
             "tokens_per_s": best[label][0], "tau": best[label][1], "step_ms": best[label][2]}
            for label, arm in arms
        ]  # fmt: skip


def write_sweep(rows: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """`sweep.csv` and tokens per second and step time by context (PNG)."""
    written = [write_file(folder / "sweep.csv", rows.to_csv(index=False))]
    with matplotlib.style.context(["default", RC]):
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        arms = list(dict.fromkeys(rows["arm"]))
        shades = matplotlib.colormaps["viridis"]
        for i, label in enumerate(arms):
            mine = rows[rows["arm"] == label]
            look: dict[str, Any] = (
                {"color": "#4d4d4d", "linestyle": "--"} if label == "vanilla" else {"color": shades(i / max(len(arms), 1))}
            )
            left.plot(mine["context"], mine["tokens_per_s"], marker="o", markersize=4, label=label, **look)
            right.plot(mine["context"], mine["step_ms"], marker="o", markersize=4, **look)
        for axes, name in (
            (left, "tokens per second, prefill excluded (τ of few steps is noise)"),
            (right, "milliseconds per step"),
        ):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(set(rows["context"])), [str(c) for c in sorted(set(rows["context"]))])
            axes.set_ylim(bottom=0)
            axes.set_xlabel("tokens of context")
            axes.set_title(name)
            axes.grid(axis="y")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.legend(loc="outside lower center", ncols=6, fontsize=8.5)
        written += save_figure(figure, folder / "sweep")
    return written
