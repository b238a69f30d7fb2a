"""The data of the page's viewer of drafted trees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from harness.common.names import label, method_order, preset_order, task_order
from harness.ledger.record import Record
from harness.ledger.trees import Drafts, read_drafts, read_pieces
from harness.metrics.acceptance import Counts
from harness.metrics.pairing import Setting, measured, setting_of, variant_of


def viewer_data(
    folder: Path, records: Iterable[Record], counts: Mapping[str, Counts], n: int, prompts_dir: Path | None = None
) -> list[dict[str, Any]]:  # fmt: skip
    """What the page's script draws: n generations of a folder with their trees, in the order of settings and methods.

    They are spread. Every method of a setting comes once before any comes twice, a method's tasks likewise, and outputs that loop
    come last. The columns are those of `harness/ledger/trees.py`; `ids` and `tokens` index `pieces`, the texts.
    """
    chosen = _spread(records, counts, n)
    keys, cells = {r["key"] for r in chosen}, {r["cell"] for r in chosen}
    drafts, pieces = read_drafts(folder, keys, cells), read_pieces(folder, cells)
    if len(drafts) < len(keys):  # a file that goes by another name than its cell's
        drafts = read_drafts(folder, keys)
    prompts = _Prompts(prompts_dir)
    return [_generation(r, drafts[r["key"]], pieces.get(r["cell"], {}), prompts) for r in chosen]


def _spread(records: Iterable[Record], counts: Mapping[str, Counts], n: int) -> list[Record]:
    arms: dict[Any, list[Record]] = {}
    for r in measured(records):
        if r["key"] in counts and counts[r["key"]].forwards:
            arms.setdefault((setting_of(r), variant_of(r)), []).append(r)

    def order(key: Any) -> Any:
        setting, variant = key
        return _setting_order(setting), method_order(variant[0]), preset_order(variant[1]), variant

    spread = [_task_by_task(arms[key]) for key in sorted(arms, key=order)]
    rounds = max(map(len, spread), default=0)
    taken = [(place, i) for i in range(rounds) for place, own in enumerate(spread) if i < len(own)][:n]
    return [spread[place][i] for place, i in sorted(taken)]


def opens_on(generations: Sequence[Mapping[str, Any]]) -> int:
    """The place of the generation that is shown first: EAGLE-2's first, else the one with the largest trees."""
    own = [i for i, g in enumerate(generations) if g["method"] == "eagle2"]
    nodes_a_forward = [len(g["tokens"]) / len(g["sizes"]) for g in generations]
    return own[0] if own else nodes_a_forward.index(max(nodes_a_forward)) if generations else 0


def _task_by_task(own: Sequence[Record]) -> list[Record]:
    """The first record of each task, then the second of each."""
    by_task: dict[tuple[str, str], list[Record]] = {}
    for r in sorted(own, key=lambda r: (r["looped"], r["turn"])):
        by_task.setdefault((r["task"], r["source"]), []).append(r)
    tasks_in_order = sorted(by_task, key=lambda t: (task_order(t[0]), t[1]))
    rounds = max(map(len, by_task.values()))
    return [by_task[t][i] for i in range(rounds) for t in tasks_in_order if i < len(by_task[t])]


def _setting_order(s: Setting) -> tuple[Any, ...]:
    return s.model, s.temperature, s.title(), s.target_sha, s.target_id, s.machine, s.system


def _generation(r: Record, d: Drafts, texts: Mapping[int, str], prompts: _Prompts) -> dict[str, Any]:
    used = {t: i for i, t in enumerate(dict.fromkeys([*r["token_ids"], *d.tokens.tolist()]))}
    turn = f", turn {r['turn']}" if r["n_turns"] > 1 else ""
    repeat = f", repeat {r['repeat']}" if r["repeat"] else ""
    return {
        "method": r["method"],
        "name": f"{label(r['method'], r['preset'])}, T = {r['temperature']:g}: {r['task']} {r['sample_id']}{turn}{repeat}",
        "about": f"{r['model']}, {r['source']} prompt, {len(r['token_ids'])} tokens, ended by {r['finish']}"
        + (", looping" if r["looped"] else ""),
        "prompt": prompts.text(r),
        "pieces": [texts.get(t, f"[{t}]") for t in used],
        "ids": [used[t] for t in r["token_ids"]],
        "sizes": d.sizes.tolist(), "accepted": d.accepted.tolist(), "tokens": [used[t] for t in d.tokens.tolist()],
        "parents": d.parents.tolist(), "path": d.path.tolist(), "sampled": d.sampled,
        "confidence": None if d.confidence is None else d.confidence.tolist(),
    }  # fmt: skip


class _Prompts:
    """The prompts that the page may show: bundled ones, and the paper's from a folder that the user names."""

    def __init__(self, prompts_dir: Path | None):
        self._folder = prompts_dir
        self._known: dict[tuple[str, str], dict[str, Sequence[str]]] = {}

    def text(self, r: Record) -> str | None:
        task = r["task"], r["source"]
        if task not in self._known:
            self._known[task] = self._load(*task)
        turns = self._known[task].get(r["sample_id"], ())
        return turns[r["turn"] - 1] if r["turn"] <= len(turns) else None

    def _load(self, task: str, source: str) -> dict[str, Sequence[str]]:
        if task not in tasks.known() or not (source == "bundled" or (source == "paper" and self._folder is not None)):
            return {}
        folder = self._folder if source == "paper" else None
        return {p.id: p.turns for p in tasks.load(task, source=source, prompts_dir=folder).prompts}
