"""`harness run --dry-run`: cells, a rough time, memory, and what is missing. Loads no model."""

from __future__ import annotations

from collections.abc import Iterator

from harness.common.errors import duration
from harness.load.config import ModelConfig
from harness.run.arms import check_given
from harness.run.request import RunRequest
from harness.run.session import known_rates, preflight_lines, run_spec


def dry_run_lines(config: ModelConfig, request: RunRequest) -> Iterator[str]:
    """What a request would measure and what it takes, a line each."""
    spec = run_spec(config, request)
    check_given(request.head, (arm.method for arm in spec.arms))
    added = [a for a in spec.measured_arms() if a not in spec.arms]
    labels = [*(f"{a.name} (baseline)" for a in added), *(f"{a.name} ({a.preset})" for a in spec.arms)]
    turns = 0
    for ps in spec.prompt_sets:
        own = spec.conversations(ps)
        n = sum(len(p.turns) for p in own)
        turns += n
        for label in labels:
            of = f"{len(own)} of {len(ps.prompts)}" if spec.shard.of > 1 else f"{len(own)}"
            where = f"{ps.task} ({ps.source}, {of} prompts, {n} turns)"
            yield f"cell: {config.name} x {where} x {label} at T = {spec.temperature:g}"
    names = [a.name for a in spec.arms] + [a.name for a in added]
    yield f"generations: {turns * len(names) * spec.repeats} of at most {spec.max_new_tokens} tokens"
    rates = known_rates(request.out, config.name)
    if lacking := [name for name in names if name not in rates]:
        yield (f"time: unknown until the warm-up has run ({request.out} has no record of {', '.join(lacking)} on "
               f"{config.name})")  # fmt: skip
    else:
        seconds = turns * spec.repeats * spec.max_new_tokens * sum(rates[name] for name in names)
        yield f"time: at most {duration(seconds)}, by the records in {request.out}; what is measured already is not taken off"
    if spec.is_served:
        yield "memory: nothing is loaded here but the tokenizer; whether the engines answer is not looked at"
        return
    yield from preflight_lines(config, names, head=request.head, dtype=request.dtype)
