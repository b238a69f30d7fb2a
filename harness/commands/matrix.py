"""`harness matrix`: a whole tier in one process."""

from __future__ import annotations

from typing import Any

from harness.commands.options import checked, include_all
from harness.commands.run import compare_with_prediction
from harness.load import config as model_configs
from harness.run.session import MATRIX_DEFAULTS, measure, run_spec, session, tell_failures
from harness.run.tiers import tier_rows


def matrix_command(tier: str, **o: Any) -> None:
    """All runs of a tier in one process: the model is loaded once, and one estimate covers them all."""
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    given = {k: v for k, v in o.items() if v is not None}
    asked = [{**MATRIX_DEFAULTS, **row, **given} for row in tier_rows(tier)]
    for options in asked:
        checked(options)
    parts = [run_spec(config, options) for options in asked]
    from harness.ledger import ledger as records
    from harness.metrics import cells as metrics

    with session(config, asked[0], parts) as runners:
        failed = measure(runners)
        wanted = {c.key for run in runners for c in run.cells()}
        summaries = metrics.summarise([r for r in records.read(o["out"]) if r["cell"] in wanted])
    for options in {options["temperature"]: options for options in asked}.values():
        compare_with_prediction(config, summaries, options)
    tell_failures(failed)
