"""The audit's page: one table over all layers, and then each layer: what it shows, its figure, and a row a method."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from harness.audit import figure_data, figures
from harness.audit.levels import LONG, SCORE_LONGEST
from harness.audit.probe.scores import ALPHA, POWER
from harness.audit.verdicts.acceptance import LOST
from harness.audit.verdicts.greedy import LOSSY
from harness.audit.verdicts.replay import GAP_FACTOR, MEDIAN_FACTOR, MOST_NOISE, REPLAY_FACTOR, controls
from harness.audit.verdicts.sampling import SHIFT
from harness.audit.verdicts.verdict import Finding, Verdict, counted  # fmt: skip
from harness.common.files import write_file
from harness.common.identities import shown_id
from harness.common.names import VANILLA, method_order
from harness.forms.table import Section, Table, csv, markdown
from harness.forms.table import plain as plain_of_table
from harness.ledger.audit_words import AUDIT, PAGE
from harness.watch.pace import LIMIT

SAID = {True: "holds", False: "FAILS", None: "not judged"}
SHORT = {"holds": "hold", "FAILS": "FAIL", "not judged": "not judged"}

# A layer's heading, what it compares (its row of the first table), what it shows and how small a fault it sees.
LAYERS = {
    "L1": (
        "exact law",
        """Every branch of a method's random choices is walked, on stand-in models over four tokens (and over six at level full).
        The branches' weights sum to the joint law of its first tokens, the prefill's included. It is compared with plain
        decoding's. One step is walked on trees up to three levels deep, for five tokens; on a tree of five levels, over two
        tokens, for seven. If drafts are not sampled, several
        steps are walked too. Cases: unrelated and peaked models, disjoint support, one-hot laws, ties, equal laws, all mass among
        the candidates; T = 0, 0.5, 1, and 1.4 with top-p. Nothing is sampled. So any change of an output's probability beyond
        rounding is found, however rare the branch. The stop rule: ids equal plain decoding's, with stop ids and the end of the
        budget inside accepted blocks, early and late.""",
    ),
    "L2": (
        "logit replay",
        f"""The logits behind every emitted token are compared with one plain forward over the finished text, without cache and
        without tree. The control is the target alone: it scores the same text one row and many rows at a time, and its noise is
        this machine's rounding. In float64 and float32 no logit may be off by more than {REPLAY_FACTOR:g} x the control's largest
        difference. In 16 bits the medians are compared, at {MEDIAN_FACTOR:g} x the control's. A wrong mask, position or cache
        row moves logits by whole units, even if the token stays the same. The control's own noise has a bound too
        ({MOST_NOISE["float64"]:g} in float64, {MOST_NOISE["float32"]:g} in float32, a median of {MOST_NOISE["bfloat16"]:g} in 16
        bits). Without it, a fault in the forwards that all methods share would excuse itself, because the control has it too.
        Where the control fails, that bound is the limit. After a prompt of {LONG} tokens drafters are guided: told the text at
        some steps, misled at others, so that paths of every length are walked. A
        ledger and another's loop keep no logits. Only L3 and L4 judge them. On a row-invariant engine the rows of greedy outputs
        are also compared with plain decoding's over the same text, by that engine, bit by bit (`same bits`): the logits behind
        every token, the features that a drafter is given, and the control's many rows. Nothing is allowed there.""",
    ),
    "L3": (
        "greedy equality",
        f"""Outputs at T = 0 are compared with vanilla's, token by token. In float64 they must be identical. In other dtypes a
        plain forward over the common prefix classifies the first difference. `benign_tie`: both tokens are the best. `near_tie`:
        both lie within gap_tol of the best, which is {GAP_FACTOR:g} x the largest movement of a gap that the control shows, over
        at least as many positions. All else is a `FAULT`: so is a difference after layer 2 was broken, and an output that ends
        early. Where the control fails, a gap is `unjudged`. Divergences may not be more frequent than the control's own (Fisher's
        exact test, Holm over all rows). On a row-invariant engine there is neither tolerance nor near-tie: every difference is
        `{LOSSY}`, in whatever dtype, but in others' loops, which run transformers' module and have the rules above. The bound is
        the exact one for the rate of outputs with a fault. Every divergence with its class: `divergences.csv`.""",
    ),
    "L4": (
        "sampling",
        f"""A token's law is known from the text before it, so the sum of g(token) less its expectation is a martingale. There are
        six functions g a method, Holm-corrected over all methods at {ALPHA:g}, vanilla included. Each row says which shift of a
        mean the whole family of tests finds with {POWER:.0%} power, and how many tokens a shift of {SHIFT:g} needs. Methods
        that draw the target's own tokens must emit, at every position, the one that the position's random number names in the law
        of the logits that layer 2 looked at; on a row-invariant engine also vanilla's ids at T = 1 in the dtype at hand, and at
        level full in float64. The test takes the logits that tokens were drawn from as they are, so it is valid in any dtype: it
        runs in a ledger's own, else in the one that runs measure. If ids are vanilla's, rows of the
        score test hold the same tokens as vanilla's, and confirm nothing more. To save time, trees are cut: at level quick to 12
        nodes in 6 levels, here, in float64 and after the long prompt; at level full to 8 nodes here (dynamic ones in 2 levels,
        lookahead's windows to 3), and in float64 to 15 after the first prompts. The rows say how often. All else has the trees
        that tables measure. Prompts over {SCORE_LONGEST} tokens are left out here. Several outputs are made at once, in lanes:
        each runs through its method's own loop, and they share forwards.""",
    ),
    "L5": (
        "acceptance and planted faults",
        f"""tau is compared with the figure kept beside the draft head (`--record`), paired by prompt. Stale features and wrong
        heads leave the law alone and show nowhere else. A loss of {LOST:.0%} is let pass. The EAGLE head's first
        drafts at each step of the long outputs are compared with those of one pass over the finished text. What the layers
        themselves are worth shows when faults are planted on purpose (`harness verify --mutants`).""",
    ),
    "L6": (
        "conduct",
        f"""A method decodes a prompt of its own twice, by two builds. Without memory it takes the same steps to the same tokens.
        Files of a user's may replace nothing of this repository's code, and may not slow plain decoding: its speed is compared
        with that in a fresh process without them, and they fail if it takes over {LIMIT:g} times as long in all of three tries.
        Where it only waited longer, on a machine whose load is above its cores, that is not judged. In every other layer too, a
        run whose result does not agree with the forwards that the harness counted cannot be recorded, and fails.""",
    ),
}
COLUMNS = ("checked", "cells", "worst value", "threshold", "smallest detectable effect", "verdict")
READING = """cells: cases walked, or outputs looked at; of a ledger, its cells. In the first table, worst value, threshold and
    smallest detectable effect are those of the method named: the one nearest to its threshold, or furthest beyond it."""


def _row(v: Verdict) -> dict[str, str]:
    checked = f"{v.checked}, {v.on}" if v.on else v.checked
    values = (checked, f"{v.cells:,}" if v.cells else "—", v.worst, v.threshold, v.detectable)
    return dict(zip(COLUMNS, (*values, SAID[v.passed] + (f" ({v.why})" if v.why else "")), strict=True))


def sections(rows: Sequence[Verdict]) -> list[Section]:
    """A section a layer and dtype, with a row a method."""
    return [
        Section(layer, (), pd.DataFrame([{"method": v.method} | _row(v) for v in rows if v.layer == layer]))
        for layer in dict.fromkeys(v.layer for v in rows)
    ]


def overview(rows: Sequence[Verdict]) -> Section:
    """A row a layer and dtype: how many methods hold, and the worst of them."""
    shown = []
    for layer in dict.fromkeys(v.layer for v in rows):
        mine = [v for v in rows if v.layer == layer]
        judged = [v for v in mine if v.passed is not None]
        worst = max(judged or mine, key=lambda v: (v.passed is False, v.ratio, v.method != VANILLA))
        said = [SAID[v.passed] for v in mine]
        verdict = ", ".join(f"{said.count(word)} {short}" for word, short in SHORT.items() if word in said)
        row = _row(worst) | {"verdict": verdict, "cells": f"{sum(v.cells for v in mine):,}"}
        of_all = judged and worst.method == "all"  # the control: its row speaks for every method
        row["checked"] = worst.checked if of_all else counted(len(judged), "method") if judged else "—"
        if worst.on and not of_all:
            row["checked"] += f", {worst.on}"
        if judged and not of_all:
            row["worst value"] = f"{worst.method}: {worst.worst}"
        elif worst.why:
            row["verdict"] += f" ({worst.why})"
        shown.append({"layer": layer} | row)
    return Section("All layers", (), pd.DataFrame(shown))


def plain(rows: Sequence[Verdict], title: str, level: str) -> str:
    """For the terminal: every row, and then the table over all layers."""
    note = " ".join(READING.split())
    return plain_of_table(Table("audit", (*sections(rows), overview(rows)), (note, f"{title}, level {level}"), _numbers(rows)))


def _numbers(rows: Sequence[Verdict]) -> pd.DataFrame:
    return pd.DataFrame([asdict(v) for v in rows])


def write(
    out: Path, rows: Sequence[Verdict], findings: Sequence[Finding], recorded: Mapping[tuple[str, str], Finding],
    facts: Mapping[str, Any], title: str, level: str, inexact: Collection[str] = (),
    cuts: Mapping[str, str] = MappingProxyType({}),
) -> list[Path]:  # fmt: skip
    """Write `audit.md`, `audit.csv`, `divergences.csv`, `lossless.json` and the figures; -> what was written.

    inexact: methods that declare themselves so, and have to fail. cuts: dtype -> on what part of the target it is run.
    """
    drawn = figures.draw_all(out, findings, recorded)
    divergences = figure_data.divergence_data(findings, controls(findings))
    word = {"model": facts["model"], "level": level, "methods": summary(rows, level, inexact)}
    word |= {"cut": dict(cuts)} if cuts else {}
    return [
        write_file(out / PAGE, page(out, rows, findings, [p.name for p in drawn], facts, title, level, inexact)),
        write_file(out / "audit.csv", csv(Table("audit", (), (), _numbers(rows)))),
        write_file(out / "divergences.csv", csv(Table("divergences", (), (), divergences))),
        write_file(out / AUDIT.name, json.dumps(word) + "\n"),
        *drawn,
    ]


def page(
    out: Path, rows: Sequence[Verdict], findings: Sequence[Finding], drawn: Sequence[str], facts: Mapping[str, Any], title: str,
    level: str, inexact: Collection[str],
) -> str:  # fmt: skip
    said = [SAID[v.passed] for v in rows]
    missing = sum(v.passed is None and v.blocks for v in rows)
    caught = sorted({v.method for v in rows if v.passed is False and v.method in inexact}, key=method_order)
    n_caught = sum(v.passed is False and v.method in inexact for v in rows)
    counts = f"{said.count('holds')} verdicts hold, {said.count('FAILS') - n_caught} fail"
    counts += f" (besides {n_caught} of {', '.join(caught)}, declared inexact, which must be caught)" if caught else ""
    counts += f", {missing} could not be judged though they should"
    apart = said.count("not judged") - missing
    shown = ", ".join(f"{k} {shown_id(str(v)) if k in ('target', 'head') else v}" for k, v in facts.items())
    parts = [
        f"# Losslessness of {title}",
        "Does a decoding method leave the distribution of the generated text as it is? There are six layers, because none of"
        " them sees every fault. Beside each verdict stands the smallest fault that it would have seen.",
        f"**{counts}**" + (f"; {apart} do not apply (the row says why)." if apart else "."),
        f"Level {level}; {shown}. Written by `harness verify`.",
        _markdown(overview(rows)),
        " ".join(READING.split()),
    ]
    for layer, (name, text) in LAYERS.items():
        parts += [f"## {layer}: {name}", " ".join(text.split())]
        parts += [f"![{layer}]({name})" for name in drawn if name.startswith(layer.lower()) and name.endswith(".png")]
        parts += [_markdown(section) for section in sections([v for v in rows if v.layer.startswith(layer)])]
        if layer == "L4" and len(scores := figure_data.score_data(findings)):
            parts.append(_markdown(_scores(scores)))
        if layer == "L5":
            parts.append(_planted(out))
    others = [v for v in rows if not v.layer.startswith(tuple(LAYERS))]
    if others:
        parts += ["## What was not judged at all", *(_markdown(section) for section in sections(others))]
    return "\n\n".join(parts) + "\n"


def _markdown(section: Section) -> str:
    return markdown(Table("", (section,), (), section.shown)).rstrip()


def _scores(data: pd.DataFrame) -> Section:
    """Every function of every method. The verdicts show only the worst."""
    shown = [
        {"function": str(r.panel).removeprefix("L4: "), "method": r.method,
         "mean shift, 95 %": f"{r.mean:+.3g} [{r.low:+.3g}, {r.high:+.3g}]",
         "z": f"{r.z:+.2f}", "smallest detectable": f"{r.detectable:.3g}"}
        for r in data.itertuples()
    ]  # fmt: skip
    return Section("L4 score test: every function", (), pd.DataFrame(shown))


def _planted(out: Path) -> str:
    """What `harness verify --mutants` left in the folder."""
    if not (out / "mutants.md").is_file():
        return "No faults were planted in this folder yet: `harness verify --mutants` with the same `--out`."
    figure = "![planted faults](mutants.png)\n\n" if (out / "mutants.png").is_file() else ""
    return figure + (out / "mutants.md").read_text(encoding="utf-8").rstrip()


def summary(rows: Sequence[Verdict], level: str, inexact: Collection[str] = ()) -> dict[str, str]:
    """method -> one cell for the main table: `lossless (level)` if every layer that applies holds. Else it names the first layer
    that fails, or says that one is open. A ledger's cell of another preset, `eagle2 (small)`, counts its method's rows too."""
    found: dict[str, str] = {}
    for method in sorted({v.method for v in rows} - {"all"}, key=method_order):
        mine = [v for v in rows if v.method in (method, method.split(" (")[0], "all")]
        failed = [v.layer for v in mine if v.passed is False]
        open_ = [v.layer for v in mine if v.passed is None and (v.blocks or v.layer.startswith("all"))]
        held = {v.layer[:2] for v in mine if v.passed}
        lacks = sorted({"L3", "L4"} - held) if method != "vanilla" else []
        found[method] = (
            f"inexact, as declared ({failed[0][:2]})" if failed and method in inexact
            else f"fails {failed[0][:2]}" if failed else "open" if open_ or lacks else f"lossless ({level})"
        )  # fmt: skip
    return found
