"""From a model's name to what was found on each of its engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import tasks
from harness.common.cores import usable_cores
from harness.common.errors import UserError, say
from harness.common.machine import keep_freed_memory
from harness.common.progress import showing_progress
from harness.forms.table import Table
from harness.load.config import ModelConfig, model_config
from harness.load.model import Loaded, load
from harness.localise import ENGINES, show
from harness.localise.engines import engines, why_not
from harness.localise.forwards import CONTEXT, find

TEXTS = 2
PROMPTS = 4  # of each task, of which the texts are cut


@dataclass(frozen=True, slots=True)
class Localised:
    """A table for each engine, and the same as one plain JSON value."""

    tables: list[Table]
    value: dict[str, Any]


def localise(model: str, *, rows: Sequence[int], engine: str, dtype: str, threads: int | None) -> Localised:
    """Compare, on a model's engines, every row of forwards over these numbers of rows with its plain step.

    engine: one of `ENGINES`, or `all` of them that the model can have.

    Raises:
        UserError: an unknown model, more rows than its context has room for, or an engine it cannot have.
    """
    config = model_config(model)
    check_room(config, max(rows))
    keep_freed_memory()
    torch.set_num_threads(threads or usable_cores())
    say(f"loading {config.title} ...")
    loaded = load(config, dtype, drafters=())
    chosen = engines(loaded, engine)
    for name in ENGINES if engine == "all" else ():
        if why := why_not(loaded, name):
            say(f"engine {name} is left out: {why}")
    texts = cut(loaded, CONTEXT + max(rows))
    where = f"{config.name}, {loaded.dtype}, {_device(loaded)}"
    facts = (f"{where}; {TEXTS} texts, a context of {CONTEXT} tokens.",)
    made: list[Table] = []
    found_by: list[dict[str, Any]] = []
    with showing_progress("localise") as progress:
        progress.expect(3 * TEXTS * len(chosen))
        for name, watched in chosen:
            progress.step(name)
            findings = find(watched, texts, rows, partial(progress.step, name))
            sentence = show.conclusion(f"{watched.title}, {loaded.dtype}", findings)
            made.append(show.table(f"{watched.title}, {loaded.dtype}", findings, facts, sentence))
            found_by.append({"engine": name, "title": watched.title, "finding": sentence, **show.as_json(findings)})
    value = {
        "model": config.name, "dtype": loaded.dtype, "device": loaded.target.device.type, "threads": torch.get_num_threads(),
        "rows": list(rows), "context": CONTEXT, "texts": TEXTS, "engines": found_by,
    }  # fmt: skip
    return Localised(made, value)


def check_room(config: ModelConfig, most: int) -> None:
    """
    Raises:
        UserError: a context and so many rows are more than the model takes.
    """
    if CONTEXT + most > config.context_length:
        raise UserError(
            f"--rows is up to {most:,}: behind a context of {CONTEXT} tokens {config.name} has room for "
            f"{max(config.context_length - CONTEXT, 0):,}, as its context is {config.context_length:,}"
        )


def _device(loaded: Loaded) -> str:
    if loaded.target.device.type == "cuda":
        return torch.cuda.get_device_name()
    n = torch.get_num_threads()
    return f"CPU, {n} {'thread' if n == 1 else 'threads'}"


def cut(loaded: Loaded, length: int) -> list[list[int]]:
    """Token ids of `TEXTS` texts of this length, from as many places of the bundled prompts; short ones are said again."""
    names = tasks.names_for(loaded.config.name)
    prompts = [p for name in names for p in tasks.load(name, source="bundled", limit=PROMPTS).prompts]
    ids = loaded.encode_text("\n\n".join(turn for p in prompts for turn in p.turns))
    starts = [i * len(ids) // TEXTS for i in range(TEXTS)]
    again = ids * (1 + -(-length // len(ids)))
    return [again[start : start + length] for start in starts]
