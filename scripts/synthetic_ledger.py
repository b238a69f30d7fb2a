"""Makes a large made-up ledger, to measure how long commands take on one.

    python scripts/synthetic_ledger.py --records 100800 --out /tmp/large             # six models, 15 methods, T = 0 and 1
    python scripts/synthetic_ledger.py --records 14700 --trees 1440 --out /tmp/trees  # with drafted trees, 25 and 59 nodes each

80 prompts a task, or fewer in a small ledger; MT-bench has two turns, so a model that is whole has 16,800 records. Every line
passes the ledger's own checks. Answers have up to 128 tokens; the generations are simulated as in `tests/make_ledger.py`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from make_ledger import ENV, Simulated, base_record, output_of  # noqa: E402

from harness.common.names import SIX_TASKS, VANILLA  # noqa: E402
from harness.ledger.ledger import RECORDS, Ledger  # noqa: E402
from harness.ledger.trees import TreeStore  # noqa: E402
from methods.base import DraftedTree  # noqa: E402

METHODS = (
    Simulated(VANILLA, 0.0, 0, 0, 0.0), Simulated("hf-generate", 0.0, 0, 0, 0.0, traced=False),
    Simulated("pld", 0.25, 10, 10, 0.0001), Simulated("lookahead", 0.3, 4, 28, 0.0002), Simulated("sps", 0.6, 5, 5, 0.02),
    Simulated("medusa", 0.45, 4, 63, 0.002), Simulated("medusa-typical", 0.5, 4, 63, 0.002, exact=False),
    Simulated("hydra", 0.52, 4, 63, 0.003), Simulated("eagle1", 0.50, 5, 25, 0.006),
    Simulated("eagle2-no-both", 0.52, 6, 59, 0.009), Simulated("eagle2-no-value", 0.53, 6, 59, 0.009),
    Simulated("eagle2-no-rerank", 0.57, 6, 59, 0.009), Simulated("eagle2", 0.60, 6, 59, 0.009),
    Simulated("eagle2-fr", 0.58, 6, 59, 0.007), Simulated("eagle2", 0.57, 5, 25, 0.007, preset="paper+total=25"),
)  # fmt: skip
WITH_TREES = ("eagle1", "eagle2")
TEMPERATURES = (0.0, 1.0)
PROMPTS, TOKENS, VOCABULARY = 80, 128, 32_000
A_MODEL = len(METHODS) * len(TEMPERATURES) * (len(SIX_TASKS) + 1)  # records of one prompt a task


def records(n: int) -> Iterator[tuple[Simulated, dict[str, Any]]]:
    """At most n records with the method that made each, model by model; within a prompt the methods follow each other."""
    n_models = max(1, n // (A_MODEL * PROMPTS))
    prompts = min(PROMPTS, n // A_MODEL)
    for model in range(n_models):
        for temperature in TEMPERATURES:
            for task in SIX_TASKS:
                for sample in range(prompts):
                    yield from _conversation(f"toy-{model}", temperature, task, sample)


def _conversation(model: str, temperature: float, task: str, sample: int) -> Iterator[tuple[Simulated, dict[str, Any]]]:
    n_turns = 2 if task == "mt_bench" else 1
    for turn in range(1, n_turns + 1):
        plain = _answer(model, temperature, task, sample, turn)
        for method in METHODS:
            ids = plain if method.exact and not temperature else _answer(method.name, method.preset, *map(str, plain[:20]))
            category = ("writing", "math", "coding", "stem")[sample % 4] if n_turns > 1 else task
            record = base_record(
                method, task, temperature, model=model, run=f"run-{model}", sample_id=str(sample), category=category, turn=turn,
                n_turns=n_turns, turn1_sha="1" * 16 if turn == 2 else None, max_new_tokens=TOKENS,
            )  # fmt: skip
            made = output_of(method, record, ids)
            yield method, made | {"text": "word " * len(ids), "cpu_s": made["wall_s"], "load": 1.0}


def _answer(*names: object) -> list[int]:
    """Token ids: some answers end early, one of twelve falls into a loop."""
    rng = random.Random(" ".join(map(str, names)))
    ids = rng.choices(range(VOCABULARY), k=TOKENS if rng.random() < 0.6 else rng.randrange(40, TOKENS))
    return [*ids[:30], *ids[:7] * 14] if rng.random() < 1 / 12 else ids


def trees(method: Simulated, record: dict[str, Any], rng: random.Random) -> list[DraftedTree]:
    """A chain as deep as the tree, and all other nodes as further children of it, in turn."""
    depth, size = method.depth, method.tree_size
    parents = [*range(depth), *((node % depth) for node in range(size - depth))]
    share = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4][:depth] + [0.1 / (1 + node) for node in range(size - depth)]
    return [
        DraftedTree(rng.choices(range(VOCABULARY), k=size), parents, [s * rng.uniform(0.8, 1) for s in share],
                    list(range(1, n + 1)), False)
        for n in record["trace"]["accepted"]
    ]  # fmt: skip


def make(out: Path, n_records: int, n_trees: int) -> tuple[int, int]:
    """Write the ledger -> the numbers of records and of generations with trees."""
    with Ledger(out) as ledger:  # which refuses a folder that another process writes to
        env = ledger.write_env(ENV)
    made, rng, store = 0, random.Random(0), TreeStore(out, str)
    with (out / RECORDS).open("w", encoding="utf-8") as file:
        for method, record in records(n_records):
            if method.name in WITH_TREES and not record["temperature"] and len(store.keys) < n_trees:
                store.add(record["cell"], record["key"], record["token_ids"], trees(method, record, rng))
            file.write(json.dumps(record | {"env": env}) + "\n")
            made += 1
    return made, len(store.keys)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--records", type=int, default=100_800, help=f"how many, at least {A_MODEL}")
    parser.add_argument("--trees", type=int, default=0, help="how many generations of eagle1 and eagle2 have drafted trees")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    asked = parser.parse_args()
    if asked.records < A_MODEL or (asked.out / RECORDS).exists():
        parser.error(f"--records is {asked.records}, and {A_MODEL} are the fewest" if asked.records < A_MODEL
                     else f"{asked.out} holds records; give a new folder")  # fmt: skip
    print("{} records, {} generations with trees in {}".format(*make(asked.out, asked.records, asked.trees), asked.out))
