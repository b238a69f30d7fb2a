"""A new record: what is known before a generation, and what the generation adds."""

from __future__ import annotations

from typing import Any, NamedTuple

import methods
from harness.ledger.record import SCHEMA, is_looped, sample_key, text_sha
from harness.load.model import Loaded
from harness.run.plan import Cell, RunSpec, head_id, head_sha
from methods.base import Generation
from tasks import Prompt


class RunFacts(NamedTuple):
    """What all records of one process have in common. `env`: names the file of the environment."""

    run_id: str
    env: str


class Clocked(NamedTuple):
    """A generation, its clocks and its memory. `cpu_s`: CPU seconds of the thread that decodes; `load`: the machine's, over one
    minute; `peak_bytes`: as `Watched` has them."""

    generation: Generation
    wall_s: float
    cpu_s: float
    load: float
    peak_bytes: int


def new_record(
    loaded: Loaded, spec: RunSpec, cell: Cell, facts: RunFacts, prompt: Prompt, *, turn: int, repeat: int, rendered: str,
    n_prompt: int, turn1_sha: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The record of a generation not yet made: no numbers."""
    arm, prompts, prompt_sha = cell.arm, cell.prompts, text_sha(rendered)
    return {
        "schema": SCHEMA, "key": sample_key(cell.key, prompt.id, turn, repeat, prompt_sha), "cell": cell.key,
        "run": facts.run_id, "model": loaded.config.name, "target_sha": loaded.target_sha, "target_id": loaded.identity.id,
        "head_sha": head_sha(loaded, arm), "head_id": head_id(loaded, arm), "task": prompts.task, "source": prompts.source,
        "method": arm.name,
        "preset": arm.preset, "exact": arm.method.exact, "options": arm.told, "sample_id": prompt.id,
        "category": prompt.category, "turn": turn, "n_turns": len(prompt.turns), "repeat": repeat, "is_warmup": False,
        "temperature": cell.temperature, "top_p": spec.top_p, "dtype": loaded.dtype, "threads": spec.threads,
        "max_new_tokens": spec.max_new_tokens, "seed": spec.seed, "token_ids": [], "text": "", "n_prompt": n_prompt,
        "n_text_tokens": 0, "n_cut": 0, "looped": False, "finish": None, "wall_s": None, "prefill_s": None, "cpu_s": None,
        "load": None, "trace": None, "peak_bytes": None, "prompts_sha": prompts.sha256, "prompt_sha": prompt_sha,
        "turn1_sha": turn1_sha, "status": "ok", "error": None, "env": facts.env, "code_sha": methods.code_sha(arm.name),
        "baseline_sha": methods.code_sha(spec.base.name),
    }  # fmt: skip


def measured(loaded: Loaded, made: Clocked) -> dict[str, Any]:
    """The fields that a generation fills."""
    found = _measured(loaded, made)
    return found | served_fields(loaded, made.generation) if getattr(loaded.target, "is_served", False) else found


def served_fields(loaded: Loaded, generation: Generation) -> dict[str, Any]:
    """What an engine elsewhere told of a generation, in place of what is counted and clocked inside a process of ours."""
    answer = loaded.target.answer_of(generation.token_ids)  # type: ignore[attr-defined]
    counts = answer.counted()
    served = {
        "first_s": answer.first_s, "n_first": answer.n_first, "prompt_as": answer.prompt_as, "ids_from": answer.ids_from,
        "n_cached": answer.n_cached, "steps": counts.steps, "drafted": counts.drafted, "accepted": counts.accepted,
        "counter": counts.counter or None, "why": counts.why or None,
    }  # fmt: skip
    # what came with the first token came by drafts: its time is not the prefill's
    return {
        "served": served,
        "wall_s": answer.wall_s,
        "prefill_s": answer.first_s if answer.n_first == 1 else None,
        "cpu_s": None,
        "peak_bytes": None,
    }


def _measured(loaded: Loaded, made: Clocked) -> dict[str, Any]:
    generation, trace = made.generation, made.generation.trace
    text = loaded.decode(generation.token_ids)
    return {
        "token_ids": generation.token_ids,
        "text": text,
        "n_text_tokens": len(loaded.encode_text(text)),
        "n_special": len(loaded.tokenizer("").input_ids),
        "n_cut": generation.n_cut,
        "looped": is_looped(generation.token_ids),
        "finish": generation.finish,
        "wall_s": made.wall_s,
        "cpu_s": made.cpu_s,
        "load": made.load,
        "prefill_s": generation.prefill_s if trace else None,
        "trace": None if trace is None else {
            "tree_size": trace.tree_size, "accepted": trace.accepted,
            **{k: [round(x, 7) for x in getattr(trace, k)] for k in ("draft_s", "verify_s", "target_s", "drafter_s")},
        },
        "peak_bytes": made.peak_bytes,
    }  # fmt: skip
