"""What drawing costs at T = 1 on a CPU: of a step of `eagle1` (or `sps`), in CPU time of the thread that decodes.

    python scripts/drawing.py --method eagle1 --rounds 7

Three parts are told apart. Drawing: the uniform numbers, and children drawn by them. Acceptance: the laws of the target and of
the drafter at the nodes reached, p/q, the residual, and the token drawn from it; at T = 0 the walk. The rest: both models and the
loop. The least of the rounds is printed for each, as whatever shares the machine only adds to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import torch

import methods
from harness.common.machine import cpu_name, keep_freed_memory
from harness.load.config import model_config
from harness.load.model import Loaded, load
from methods.base import SamplerParams
from methods.eagle1 import SHAPE
from methods.engine import grow as growing
from methods.engine.grow import paths_of, sampled_chain, static_tree
from methods.engine.loop import Grow, speculative
from methods.engine.sampling import Chooser
from methods.engine.verify import rejection

GROW = {"eagle1": static_tree(paths_of(SHAPE)), "sps": sampled_chain(5)}
PROMPT = "Write a long story about a dragon and a village near the sea."


class Watch:
    """Seconds of CPU time by part; `begun`: when the first step began."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.begun = 0.0

    def of(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            self.begun = self.begun or began
            made = function(*given, **named)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.thread_time() - began
            return made

        return timed


def of_a_step(loaded: Loaded, name: str, temperature: float) -> dict[str, float]:
    """Milliseconds of CPU time of a step, and of its drafting, drawing and acceptance."""
    watch, grow, drafter = Watch(), GROW[name], loaded.drafter_of(methods.get(name).drafter)
    own = drafter if hasattr(drafter, "drawn_children") else growing
    plain, uniforms = own.drawn_children, Chooser.uniforms_of_children
    decode = speculative(Grow(watch.of("draft", grow.tree), grow.most), watch.of("acceptance", rejection))
    prompt = loaded.encode(loaded.render([("user", PROMPT)]))
    try:
        own.drawn_children = watch.of("drawing", plain)  # type: ignore[union-attr]
        Chooser.uniforms_of_children = watch.of("drawing", uniforms)  # type: ignore[method-assign]
        with loaded.target.decoding():
            made = decode(prompt, loaded.target, drafter, SamplerParams(96, temperature=temperature, key=7))
        whole = time.thread_time() - watch.begun
    finally:
        Chooser.uniforms_of_children = uniforms  # type: ignore[method-assign]
        own.drawn_children = plain  # type: ignore[union-attr]
    assert made.trace is not None
    n = len(made.trace.accepted)
    return {name: 1e3 * s / n for name, s in (watch.seconds | {"step": whole}).items()}


@click.command()
@click.option("--method", type=click.Choice(sorted(GROW)), default="eagle1")
@click.option("--model", default="smollm2-135m")
@click.option("--dtype", default="auto")
@click.option("--rounds", type=click.IntRange(min=1), default=7)
def main(method: str, model: str, dtype: str, rounds: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    loaded = load(model_config(model), dtype=dtype, drafters=("eagle", "lm"))
    found = {t: [of_a_step(loaded, method, t) for _ in range(rounds + 1)][1:] for t in (0.0, 1.0)}  # the first touches memory
    least = {t: {part: min(one[part] for one in rows) for part in rows[0]} for t, rows in found.items()}
    greedy, sampled = least[0.0], least[1.0]
    click.echo(f"{method}, {model}, {loaded.target.engine}, {loaded.target.dtype}, 1 thread, {cpu_name()}")
    for temperature, parts in least.items():
        click.echo(f"T = {temperature:g}: a step takes {parts['step']:.1f} ms")
    for part, base in (("drawing", 0.0), ("acceptance", greedy["acceptance"])):
        ms, more = sampled[part], sampled[part] - base
        click.echo(f"{part}: {ms:.2f} ms, {more:.2f} ms more than at T = 0, {more / sampled['step']:.1%} of the step")


if __name__ == "__main__":
    main()
