"""`harness profile`: where the time of a decoding step goes, with the ceilings beside it; and speed against context.

The decoding loop runs unchanged: its target and drafter are wrapped in proxies that read the clock around each call.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
import torch
from matplotlib.figure import Figure

from harness.loading import Loaded
from harness.plots import RC, save_figure
from harness.runner import Arm
from harness.tables import write_file
from methods.base import Generation, SamplerParams

Seconds = defaultdict[str, float]


class _Timed:
    """Passes everything on to `inner`; the methods named in `watched` are timed under the name `name_of` gives them.

    settle: waits for a GPU's work, so that a part has its own time; the whole is slower by that.
    """

    def __init__(
        self, inner: Any, seconds: Seconds, watched: Sequence[str], name_of: Callable[[str], str], settle: Callable[[], None]
    ):
        self._inner, self._seconds, self._watched, self._name_of = inner, seconds, frozenset(watched), name_of
        self._settle = settle

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if name not in self._watched:
            return value

        def timed(*args: Any, **kwargs: Any) -> Any:
            part = self._name_of(name)
            self._settle()
            started = time.perf_counter()
            result = value(*args, **kwargs)
            self._settle()
            self._seconds[part] += time.perf_counter() - started
            return result

        return timed


@dataclass(frozen=True, slots=True)
class Profile:
    """Milliseconds per step of one method by part, over `steps` steps; `tau` tokens a step.

    A draft level is a whole call of the drafter, masks included, which a ledger's c_draft leaves to c_other.
    """

    method: str
    preset: str
    steps: int
    tau: float
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def profile(loaded: Loaded, arm: Arm, prompts: Sequence[list[int]], params: SamplerParams) -> Profile:
    """Run `arm` over prompts (token ids) and take its steps apart; the prefill is not a step and is left out."""
    seconds: Seconds = defaultdict(float)
    level = -1  # of the draft under way; -1: the drafter's run over the prompt is still to come

    def target_part(name: str) -> str:
        return {"verify": "verify", "step": "verify"}.get(name, name)

    def drafter_part(name: str) -> str:
        nonlocal level
        if name == "start":
            level = -1
            return "prompt"
        if name == "observe":
            part, level = ("prompt" if level < 0 else ACCEPTED), 0
            return part
        level += 1  # root_logits, then expand after expand
        return f"draft level {level}"

    settle = loaded.target.synchronise
    target = _Timed(loaded.target, seconds, ("prefill", "step", "verify", "commit"), target_part, settle)
    own = loaded.drafter_of(arm.method.drafter)
    drafter = None if own is None else _Timed(own, seconds, ("start", "observe", "root_logits", "expand"), drafter_part, settle)
    decode = arm.method.build(**arm.options)

    def run(ids: list[int], target: Any, drafter: Any) -> Generation:
        return decode(ids, target, drafter, params)

    run(prompts[0], loaded.target, own)  # warm
    steps = tokens = 0
    draft = verify = target_s = rest = 0.0
    for ids in prompts:
        started = time.perf_counter()
        made = run(ids, target, drafter)
        wall = time.perf_counter() - started
        t = made.trace
        assert t is not None
        steps, tokens = steps + len(t.accepted), tokens + len(made.token_ids) - 1
        draft, verify, target_s = draft + sum(t.draft_s), verify + sum(t.verify_s), target_s + sum(t.target_s)
        rest += wall - made.prefill_s - sum(t.draft_s) - sum(t.verify_s)
    drafting = {name: seconds[name] for name in sorted(seconds, key=_level) if name.startswith("draft")}
    parts = {"target forward": target_s} | drafting
    if drafting:
        parts["growth (top-k, scores, tree)"] = draft - sum(drafting.values())
    parts |= {
        "mask and positions": seconds["verify"] - target_s,
        "cache": seconds["commit"],
        "acceptance": verify - seconds["verify"] - seconds["commit"],
        "loop": rest,
    }
    return Profile(arm.name, arm.preset, steps, tokens / max(steps, 1), {k: 1e3 * v / max(steps, 1) for k, v in parts.items()})


def _level(part: str) -> int:
    return int(part.split()[2]) if part.startswith("draft level") else -1


def _place(part: str) -> float:
    """Where a part stands in a bar: the target, the draft's levels, the rest."""
    return 0 if part == "target forward" else 1 + _level(part) if part.startswith("draft level") else 1e3


ACCEPTED = "draft level 0 (accepted tokens)"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What one plain step cannot beat: every weight of the target is read once."""

    weight_bytes: int
    bandwidth: float  # bytes per second

    @property
    def step_ms(self) -> float:
        return 1e3 * self.weight_bytes / self.bandwidth


def ceiling(loaded: Loaded, megabytes: int = 512) -> Ceiling:
    """Bytes of the matrices a step reads over the bandwidth measured here (the best of summing and copying a large block)."""
    body = loaded.target.model.model
    n = sum(p.numel() for p in body.layers.parameters()) + loaded.target.lm_head.weight.numel()
    size = loaded.target.lm_head.weight.element_size()
    where = loaded.target.device
    block = torch.ones(megabytes * 2**18, device=where)
    other = torch.empty_like(block)

    def best(work: Callable[[], object], moved: int) -> float:
        rates = []
        for _ in range(7):
            loaded.target.synchronise()
            started = time.perf_counter()
            work()
            loaded.target.synchronise()
            rates.append(moved / (time.perf_counter() - started))
        return max(rates)

    n_bytes = block.numel() * 4
    return Ceiling(n * size, max(best(lambda: block.sum(), n_bytes), best(lambda: other.copy_(block), 2 * n_bytes)))


def profile_rows(profiles: Sequence[Profile], base: Profile, limit: Ceiling, best: Mapping[str, float]) -> pd.DataFrame:
    """One row a method and part: milliseconds a step, in vanilla steps, and the share of the step; with the ceilings: a vanilla
    step at the memory's bandwidth, and the best decode speedup predicted over all trees (`best`, by method)."""
    rows = [
        {"method": p.method, "preset": p.preset, "part": part, "ms": ms, "vanilla_steps": ms / base.total, "share": ms / p.total,
         "tau": p.tau, "steps": p.steps, "bandwidth_limit_ms": limit.step_ms, "best_predicted": best.get(p.method)}
        for p in profiles for part in all_parts(profiles) if (ms := p.parts.get(part)) is not None
    ]  # fmt: skip
    return pd.DataFrame(rows)


def report(profiles: Sequence[Profile], limit: Ceiling, where: str, best: Mapping[str, float]) -> str:
    """The profile as Markdown, the ceilings beside it. `best`: the best predicted decode speedup over all trees, by method."""
    base = profiles[0]
    lines = [f"Where a step's time goes: {where}. In milliseconds a step (share of the step).", ""]
    parts = all_parts(profiles)
    lines.append(
        "| part | " + " | ".join(p.method if p.preset == "paper" else f"{p.method} ({p.preset})" for p in profiles) + " |"
    )
    lines.append("|:--|" + "--:|" * len(profiles))
    for part in parts:
        cells = (f"{p.parts[part]:.2f} ({p.parts[part] / p.total:.0%})" if part in p.parts else "" for p in profiles)
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    for name, value in (
        ("**one step**", lambda p: f"{p.total:.1f} ms"),
        ("in vanilla steps", lambda p: f"{p.total / base.total:.2f}"),
        ("outside both models", lambda p: f"{outside(p):.1%}"),
        ("τ", lambda p: f"{p.tau:.2f}"),
        ("decode speedup", lambda p: f"{p.tau * base.total / p.total:.2f}×"),
        ("best tree predicted by `harness tune`", lambda p: f"{best[p.method]:.2f}×" if p.method in best else ""),
    ):
        lines.append(f"| {name} | " + " | ".join(value(p) for p in profiles) + " |")
    lines += [
        "",
        f"Ceiling of plain decoding: a step reads {limit.weight_bytes / 1e6:.0f} MB of weights; at the "
        f"{limit.bandwidth / 1e9:.1f} GB/s measured here that takes {limit.step_ms:.1f} ms ({1e3 / limit.step_ms:.0f} tokens/s). "
        f"Vanilla's step reaches {limit.step_ms / base.total:.0%} of it.",
        "",
    ]
    return "\n".join(lines)


def all_parts(profiles: Sequence[Profile]) -> list[str]:
    """Every part of any profile, in the order of the one with the most."""
    longest = max(profiles, key=lambda p: len(p.parts))
    return list(dict.fromkeys(part for p in (longest, *profiles) for part in p.parts))


def outside(p: Profile) -> float:
    """The share of a step spent in neither model."""
    return sum(ms for part, ms in p.parts.items() if part != "target forward" and not part.startswith("draft level")) / p.total


def write_profile(rows: pd.DataFrame, text: str, title: str, folder: Path) -> list[Path]:
    """`profile.csv`, `profile.md`, and the parts of a step as stacked bars (PNG and PDF)."""
    written = [write_file(folder / "profile.csv", rows.to_csv(index=False)), write_file(folder / "profile.md", text)]
    with matplotlib.style.context(["default", RC]):
        figure = Figure(figsize=(9, 1.6 + 0.55 * rows.groupby(["method", "preset"]).ngroups), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(zip(rows["method"], rows["preset"], strict=True)))
        parts = list(dict.fromkeys(rows.sort_values("part", key=lambda c: c.map(_place), kind="stable")["part"]))
        colours = _part_colours(parts)
        left = dict.fromkeys(names, 0.0)
        for part in parts:
            for i, name in enumerate(names):
                mine = rows[(rows["method"] == name[0]) & (rows["preset"] == name[1]) & (rows["part"] == part)]
                if len(mine):
                    width = float(mine["vanilla_steps"].iloc[0])
                    axes.barh(i, width, left=left[name], color=colours[part], edgecolor="white", linewidth=0.4)
                    left[name] += width
        for i, name in enumerate(names):
            tau = float(rows[(rows["method"] == name[0]) & (rows["preset"] == name[1])]["tau"].iloc[0])
            best = rows[(rows["method"] == name[0]) & (rows["preset"] == name[1])]["best_predicted"].iloc[0]
            said = f"  {left[name]:.2f} for τ {tau:.2f}: {tau / left[name]:.2f}×" + (
                "" if pd.isna(best) else f" (best tree predicted: {best:.2f}×)"
            )
            axes.text(left[name], i, said, va="center", fontsize=8.5)
        limit = rows["bandwidth_limit_ms"].iloc[0] * rows["vanilla_steps"].iloc[0] / rows["ms"].iloc[0]
        ceiling = axes.axvline(limit, color="black", linestyle=":", label="weights read at the memory's bandwidth")
        axes.set_yticks(range(len(names)), [m if p == "paper" else f"{m} ({p})" for m, p in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.6 * max(left.values()))
        axes.set_xlabel("one step, in vanilla steps")
        axes.set_title(title)
        handles = [*(axes.barh(0, 0, color=colours[p], label=p) for p in parts), ceiling]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
        written += save_figure(figure, folder / "profile")
    return written


def _part_colours(parts: Sequence[str]) -> dict[str, Any]:
    fixed = {"target forward": "#0072b2", "growth (top-k, scores, tree)": "#009e73",
             "mask and positions": "#999999", "cache": "#bbbbbb", "acceptance": "#cc79a7", "loop": "#dddddd"}  # fmt: skip
    oranges = matplotlib.colormaps["Oranges"]
    levels = [p for p in parts if p.startswith("draft level")]
    return {p: fixed.get(p) or oranges(0.75 - 0.45 * levels.index(p) / max(len(levels), 1)) for p in parts}


# ---- speed against context and tree size ----


def sweep(
    loaded: Loaded,
    arms: Sequence[tuple[str, Arm]],
    contexts: Sequence[int],
    text: Sequence[int],
    params: SamplerParams,
    rounds: int = 3,
) -> Iterator[list[dict[str, Any]]]:
    """Decode-only tokens per second of each (label, arm), prompts cut from `text`, the best of `rounds`: a list a context."""
    decoders = {label: arm.method.build(**arm.options) for label, arm in arms}
    for context in contexts:
        ids = list(text[:context])
        if len(ids) < context or context + params.max_new_tokens > loaded.config.context_length:
            continue
        best: dict[str, tuple[float, float, float]] = {}
        for _ in range(rounds):
            for label, arm in arms:
                started = time.perf_counter()
                made = decoders[label](ids, loaded.target, loaded.drafter_of(arm.method.drafter), params)
                seconds = time.perf_counter() - started - made.prefill_s
                assert made.trace is not None
                steps, tokens = len(made.trace.accepted), len(made.token_ids) - 1
                best[label] = max(best.get(label, (0.0, 0.0, 0.0)), (tokens / seconds, tokens / steps, 1e3 * seconds / steps))
        yield [
            {"context": context, "arm": label, "method": arm.name, "tree": arm.options.get("total", 0),
             "tokens_per_s": best[label][0], "tau": best[label][1], "step_ms": best[label][2]}
            for label, arm in arms
        ]  # fmt: skip


def write_sweep(rows: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """`sweep.csv` and tokens per second and step time by context (PNG and PDF)."""
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
