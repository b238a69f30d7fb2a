"""What a notebook needs, lazily from `harness`: models that generate, runs that measure, ledgers as data frames, audits.

import harness

model = harness.load_model("smollm2-135m")
print(model.generate("Why is the sky blue?", method="eagle2").text)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from harness.common.bounds import bounded
from harness.common.cores import usable_cores
from harness.common.errors import UserError
from harness.common.machine import keep_freed_memory
from harness.ledger import ledger
from harness.ledger.record import Record, StoredRecord
from harness.load.config import model_config
from harness.metrics import cells
from harness.run.request import RunRequest, need, several

if TYPE_CHECKING:
    import pandas as pd

    from harness.audit.verdicts.verdict import Verdict
    from harness.load.model import Loaded
    from methods.base import DraftedTree


@dataclass(frozen=True, slots=True)
class Output:
    """One generation. `tau`: tokens per target forward after the prefill, None where a method tells of no steps or there was
    none. `trees`: every drafted tree with the path accepted. `seconds`: of the whole generation, prefill included."""

    text: str
    token_ids: list[int]
    tau: float | None
    trees: list[DraftedTree]
    seconds: float


class Model:
    """A loaded target with its drafters. Make one with `load_model`."""

    def __init__(self, loaded: Loaded, head: Path | None) -> None:
        self.loaded = loaded
        self._head = head

    def generate(
        self,
        prompt: str,
        method: str = "eagle2",
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Output:
        """Decode one user message, under the model's chat template, with any registered method.

        options: of the method, instead of its defaults (`harness list methods` shows them).

        Raises:
            UserError: no such method or option, a prompt that does not fit, a drafter the model lacks, or a method that returns
                what cannot be.
        """
        from harness.run.arms import make_arms
        from harness.watch.run import names_of, settled
        from methods.base import SamplerParams
        from methods.engine.sampling import stream_key

        need(isinstance(prompt, str), f"the prompt is of type {type(prompt).__name__}; it must be a text")
        config, loaded = self.loaded.config, self.loaded
        try:
            request = RunRequest(
                temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
            )  # which checks them
        except UserError as e:
            raise UserError(re.sub(r"--[a-z-]+", lambda flag: flag[0].lstrip("-").replace("-", "_"), str(e))) from None
        budget = request.max_new_tokens or config.max_new_tokens
        (arm,) = make_arms((method,), "paper", {k: str(v) for k, v in options.items()}, config, self._head)
        drafter = loaded.drafter_of(arm.method.drafter)
        if arm.method.drafter is not None and drafter is None:
            raise UserError(f"method {method} drafts with a {methods.DRAFTERS[arm.method.drafter]}, and none was loaded")
        ids = loaded.encode(loaded.render([("user", prompt)]))
        if len(ids) + budget > config.context_length:
            raise UserError(f"the prompt has {len(ids)} tokens; with {budget} new ones it exceeds the context of "
                            f"{config.context_length}: pass a smaller max_new_tokens")  # fmt: skip
        params = SamplerParams(
            budget, frozenset(config.stop_ids), temperature=temperature, top_p=top_p, key=stream_key(seed, prompt, 1, 0),
            keep_trees=True,
        )  # fmt: skip
        m = arm.method
        seen = settled(partial(m.build, **arm.options), ids, loaded.target, drafter, params, names_of(loaded, m.drafter),
                       external=m.external)  # fmt: skip
        made = seen.generation
        steps = len(made.trace.tree_size) if made.trace else 0
        tau = (len(made.token_ids) - 1) / steps if steps else None
        return Output(loaded.decode(made.token_ids), made.token_ids, tau, made.trace.trees if made.trace else [], seen.wall_s)


def load_model(
    name: str = "smollm2-135m", *, dtype: str = "auto", head: str | Path | None = None, threads: int | None = None
) -> Model:
    """A target by name or YAML, with every drafter it has.

    dtype: auto takes the fastest here. head: a drafter's folder, instead of the model's own of that kind.

    Raises:
        UserError: no such model, or its weights cannot be had.
    """
    import torch

    from harness.load.model import load
    from harness.load.weights import drafter_folders

    bounded("threads", threads)
    config = model_config(str(name))
    given = None if head is None else Path(head)
    keep_freed_memory()
    torch.set_num_threads(threads or usable_cores())
    folder = given or config.head_folder
    return Model(load(config, dtype, head=given, drafters=set(drafter_folders(config, folder))), folder)


def measure(*requests: RunRequest) -> pd.DataFrame:
    """Measure what is missing of requests that differ in methods, tasks or temperature; -> `summarise` of their cells.

    Raises:
        UserError: bad input; generations that failed (they are recorded, and the same call tries them again).
    """
    from harness.run.session import carry_out, tell_failures

    if not requests:
        raise UserError("measure needs a RunRequest, for instance RunRequest(methods=('eagle2',), tasks=('gsm8k',))")
    done = carry_out(model_config(requests[0].model), requests)
    tell_failures(done.n_failed)
    return _frame(done.records)


def read(folder: str | Path, *, strict: bool = False) -> pd.DataFrame:
    """A ledger's records, one row a generation, warm-ups left out; docs/file_formats.md tells of the columns.

    A line that cannot be read is left out, and named on stderr; `attrs["footnotes"]` counts them.

    Raises:
        UserError: no records there; or `strict`, and a line or an env file that cannot be read.
    """
    import pandas as pd

    records = ledger.read(Path(folder), strict=strict)
    frame = pd.DataFrame([r for r in records if not r["is_warmup"]])
    frame.attrs["footnotes"] = records.footnotes
    return frame


def summarise(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    """One row a cell (model, method, preset, task, temperature ...) of a ledger's folder, or of what `read` gave, perhaps less.

    `tau` and `speedup`, each with `_low` and `_high` where there are five prompts or more; `decode_speedup`, `tokens_per_s`;
    `mark`: what the speed is marked with in tables; `prompts`: conversations; `identical`: conversations whose greedy outputs are
    vanilla's. A missing number is NaN.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        lacking = sorted(StoredRecord.__required_keys__ - set(source.columns)) if len(source) else []
        need(not lacking, f"the frame lacks columns of harness.read: {', '.join(lacking)}")
        records: list[Record] = source.astype(object).where(source.notna(), None).to_dict("records")  # type: ignore[assignment]
    else:
        records = ledger.read(Path(source), reduced=True)
    return _frame(records)


def verify(
    *,
    model: str = "smollm2-135m",
    methods: Sequence[str] = ("all",),
    level: str = "quick",
    out: str | Path = "results/audit",
    **more: Any,
) -> list[Verdict]:
    """Audit methods on a model, in layers; -> a verdict a layer and method. `more`: see `harness.audit.audit.AuditRequest`."""
    from harness.audit.audit import AuditRequest
    from harness.audit.audit import verify as audit

    several("methods", methods)  # type: ignore[arg-type]
    return audit(AuditRequest(model=model, methods=tuple(methods), level=level, out=Path(out), **more))


_AS_THEY_ARE = (
    "model", "method", "preset", "options", "task", "source", "temperature", "top_p", "dtype", "threads", "max_new_tokens",
    "seed", "exact", "machine", "prompts", "new_tokens", "seconds", "decode_speedup", "tokens_per_s", "baseline_tokens_per_s",
    "mark", "identical", "looped",
)  # fmt: skip
_WITH_INTERVALS = ("tau", "speedup")


def _frame(records: Sequence[Record]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for s in cells.summarise(records):
        row = {name: getattr(s, name) for name in _AS_THEY_ARE}
        for name in _WITH_INTERVALS:
            low, high = getattr(s, f"{name}_ci95", None) or (None, None)
            row |= {name: getattr(s, name), f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    columns = [*_AS_THEY_ARE, *(f"{name}{end}" for name in _WITH_INTERVALS for end in ("", "_low", "_high"))]
    return pd.DataFrame(rows, columns=columns)
