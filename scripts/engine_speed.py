"""How near the native engine comes to what this machine allows, beside torch's kernels: one interleaved run.

    HARNESS_ENGINE=native python scripts/engine_speed.py --threads 1 --out results/engine-speed/1-thread.json

Of a model on this machine, in rounds that take everything in turn: the rate at which memory is read, in 2 MB and in 4 KB pages; a
plain step against the time of reading its weights; a forward over trees of several sizes; a level of ten drafts; a whole step of
EAGLE-2 and what of it is outside both models. Medians of the rounds are printed, and written with the least and the greatest.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

import methods
from harness.common.machine import cpu_name
from harness.load.config import model_config
from harness.load.model import Loaded, load
from methods.base import SamplerParams
from methods.engine.llama import LlamaTarget
from methods.engine.native import build, pages
from methods.engine.native.library import peak_rate, read_rate
from methods.engine.native.target import NativeTarget
from methods.engine.tree import Tree

ROWS = (1, 2, 5, 8, 16, 26, 60)
CONTEXT, LEVEL, CUT = 150, 10, 8192
BLOCK = 256 << 20  # bytes that are read to measure the memory


def some_tree(n: int, vocab: int) -> Tree:
    """n nodes, each hanging on one of the six before it."""
    draw = random.Random(n)
    parents = [-1] + [draw.randrange(max(0, i - 6), i) for i in range(1, n)]
    return Tree([draw.randrange(vocab) for _ in range(n)], parents)


def in_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def of_a_step(loaded: Loaded, **changes: Any) -> dict[str, float]:
    """Of EAGLE-2's steps over one answer: milliseconds, the share outside both models, tau, tokens a second."""
    method = methods.get("eagle2")
    prompt = loaded.encode(loaded.render([("user", "Write a long story about a dragon and a village near the sea.")]))
    decode = method.build(**method.resolve("paper", changes, {}))
    with loaded.target.decoding():
        made = decode(prompt, loaded.target, loaded.drafter_of(method.drafter), SamplerParams(64, key=7))
    trace = made.trace
    assert trace is not None
    steps = [d + v for d, v in zip(trace.draft_s, trace.verify_s, strict=True)]
    inside = sum(trace.target_s) + sum(trace.drafter_s)
    n = len(made.token_ids) - 1
    return {"step_ms": 1e3 * sum(steps) / len(steps), "outside": 1 - inside / sum(steps), "tau": n / len(steps),
            "tokens_per_s": n / sum(steps)}  # fmt: skip


def measured(loaded: Loaded, threads: int, rounds: int) -> dict[str, list[float]]:
    """Name -> one figure a round; the first round, in which memory is touched first, is dropped."""
    native: Any = loaded.target
    torch_target = LlamaTarget(native.model)
    trees = {n: some_tree(n, native.vocab_size) for n in ROWS}
    prompt = list(range(100, 100 + CONTEXT))
    huge = pages.empty((BLOCK,), torch.uint8).fill_(1)
    small = torch.ones(BLOCK, dtype=torch.uint8)
    drafter: Any = loaded.drafter
    tokens = torch.arange(LEVEL) + 300
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for target in (native, torch_target):
        target.prefill(prompt, 128)
    for _ in range(rounds + 1):
        note("GB/s, 2 MB pages", read_rate(native.library, huge, threads) / 1e9)
        note("GB/s, 4 KB pages", read_rate(native.library, small, threads) / 1e9)
        note("GFLOP/s, float32 at best", peak_rate(native.library, threads) / 1e9)
        for name, target in (("native", native), ("torch", torch_target)):
            note(f"{name}, plain step, ms", in_ms(lambda target=target: target.step(5)))
            target.cache.length -= 1
            for n, tree in trees.items():
                note(f"{name}, {n} rows, ms", in_ms(lambda target=target, tree=tree: target.verify(tree)))
        for name, frequent in (("whole vocabulary", None), (f"{CUT:,} tokens", CUT)):
            drafter.start(512, frequent, prompt[0])
            drafter.observe(prompt[1:], torch.zeros(CONTEXT - 1, native.native.hidden_size))
            note(f"level of {LEVEL} drafts over {name}, ms", in_ms(
                lambda: drafter.best_children(drafter.expand(tokens, torch.full((LEVEL,), -1), torch.eye(LEVEL) > 0), LEVEL)
            ))  # fmt: skip
        for name, changes in (("60 nodes", {}), ("5 nodes", {"top_k": 2, "depth": 2, "total": 4})):
            for what, value in of_a_step(loaded, **changes).items():
                note(f"eagle2, {name}, {what}", value)
        native.prefill(prompt, 128)
    return {name: values[1:] for name, values in figures.items()}


@click.command(help=__doc__)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(model: str, dtype: str, threads: int, rounds: int, out: Path | None) -> None:
    torch.set_num_threads(threads)
    loaded = load(model_config(model), dtype)
    if not isinstance(loaded.target, NativeTarget):
        raise click.ClickException(f"{model} does not run on the native engine here, but on {loaded.target.engine}")
    found = measured(loaded, threads, rounds)
    middle = {name: median(values) for name, values in found.items()}
    limit = loaded.target.weight_bytes / middle["GB/s, 2 MB pages"] / 1e6
    for name, value in middle.items():
        print(f"{name:55} {value:9.2f}   [{min(found[name]):.2f}, {max(found[name]):.2f}]")
    print(f"reading {loaded.target.weight_bytes / 1e6:.0f} MB of weights takes {limit:.2f} ms: a plain step is at "
          f"{limit / middle['native, plain step, ms']:.0%} of that limit")  # fmt: skip
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({
            "command": f"scripts/engine_speed.py --model {model} --dtype {dtype} --threads {threads} --rounds {rounds}",
            "cpu": cpu_name(), "engine": loaded.target.engine, "native": build.describe(loaded.target.path),
            "torch": torch.__version__,
            "weight_bytes": loaded.target.weight_bytes, "limit_ms": limit, "medians": middle, "rounds": found,
        }, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
