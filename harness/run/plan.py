"""What a run asks for: arms, prompts, and the cells they make."""

from __future__ import annotations

from dataclasses import dataclass

from methods import Arm
from tasks import PromptSet


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What one `harness run` asks for."""

    arms: tuple[Arm, ...]
    prompt_sets: tuple[PromptSet, ...]
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    repeats: int
    threads: int
    baseline: bool
    on_overflow: str  # error | skip
    trees: bool = False  # keep every drafted tree beside the records


@dataclass(slots=True)
class Cell:
    """An arm on a task at a temperature: what one cell key names."""

    arm: Arm
    prompts: PromptSet
    temperature: float
    key: str
