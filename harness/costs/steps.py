"""Where the time of a decoding step goes.

The decoding loop runs unchanged. Its target and drafter are wrapped in proxies that read the clock around each call.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.load.model import Loaded
from methods import Arm
from methods.base import Generation, SamplerParams

Seconds = defaultdict[str, float]


class _Timed:
    """Passes everything on to `inner`. The methods in `watched` are timed, each under the part that `name_of` says.

    settle: waits for a GPU's work, so that each part has its own time; the whole gets slower by that.
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
    """Milliseconds a step of one method, by part, over `steps` steps of `tau` tokens each.

    A draft level is a whole call of the drafter, its masks included. A ledger's c_draft leaves those to c_other.
    """

    method: str
    preset: str
    steps: int
    tau: float
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Milliseconds of a whole step."""
        return sum(self.parts.values())


def profile(loaded: Loaded, arm: Arm, prompts: Sequence[list[int]], params: SamplerParams) -> Profile:
    """Run `arm` over prompts (token ids), and take its steps apart. The prefill is no step, and is left out."""
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
        with loaded.target.decoding():
            return decode(ids, target, drafter, params)

    run(prompts[0], loaded.target, own)  # warm
    steps = tokens = 0
    draft = verify = target_s = rest = 0.0
    for ids in prompts:
        settle()
        started = time.perf_counter()
        made = run(ids, target, drafter)
        settle()
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


def place(part: str) -> float:
    """Sort key of a part in a bar: the target, the draft's levels, the rest."""
    return 0 if part == "target forward" else 1 + _level(part) if part.startswith("draft level") else 1e3


ACCEPTED = "draft level 0 (accepted tokens)"


def all_parts(profiles: Sequence[Profile]) -> list[str]:
    """Every part that any profile has, in the order of the profile with the most."""
    longest = max(profiles, key=lambda p: len(p.parts))
    return list(dict.fromkeys(part for p in (longest, *profiles) for part in p.parts))


def outside(p: Profile) -> float:
    """The share of a step that is spent in neither model."""
    return sum(ms for part, ms in p.parts.items() if part != "target forward" and not part.startswith("draft level")) / p.total
