"""`harness verify`: runs an audit and prints its verdicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from harness.audit import page
from harness.audit.audit import Audit, chosen, pairs_of
from harness.audit.layers import ids_of
from harness.audit.levels import LEVELS
from harness.audit.probe.ledger_pairs import LedgerPair
from harness.audit.recorded_taus import taus
from harness.audit.store import Store
from harness.audit.verdicts import verdict as verdicts
from harness.common.errors import UserError, unknown
from harness.load.config import model_config


def verify(
    *, model: str, names: Sequence[str], level: str, dtypes: Sequence[str], results: Sequence[Path], prompts_dir: Path | None,
    out: Path, head: Path | None, threads: int, as_json: bool, record: bool = False,
) -> None:  # fmt: skip
    """Audit methods on a model; print the table, write it with figures beside the findings.

    record: keep each method's tau beside the head, as what later audits are compared with.

    Raises:
        UserError: bad input, or a layer found a method out (after everything was checked).
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    config = model_config(model)
    folder = head or config.head_folder
    if record and folder is None:
        raise UserError(f"--record keeps taus beside the draft head, and model {config.name} has none")
    if folder is not None:
        taus(folder)  # a spoilt file is found out before hours are spent
    subjects = chosen(names, config)
    ledger: list[LedgerPair] = []
    n_alone = 0
    for records_folder in results:
        pairs, n = pairs_of(records_folder, config)
        ledger, n_alone = ledger + pairs, n_alone + n
    ledger = list({(ids_of(pair), pair.key, pair.vanilla_key): pair for pair in ledger}.values())  # of two copies one counts
    wanted = tuple(dict.fromkeys(dtypes or (*(pair.dtype for pair in ledger), *LEVELS[level].dtypes)))
    with Store(out) as store:
        audit = Audit(store, config, subjects, level, ledger, prompts_dir, folder, set(names), threads)
        if n_alone:
            why = f"{n_alone} outputs ended in an error or have no output of vanilla's beside them: run the same command again"
            audit.rows.append(verdicts.Verdict.missing("L3, ledger", "all", why))
        prepared = False
        for dtype in wanted:
            loaded = audit.load(dtype, head)
            if loaded is None:
                continue
            if not prepared:
                audit.prepare(loaded, wanted)
                audit.law()
                prepared = True
            audit.on_model(loaded, dtype)
            del loaded  # two models need not fit side by side
        if not prepared:
            raise UserError(audit.rows[-1].why)
        audit.not_asked_for(wanted)
        rows, recorded = audit.judged(), audit.recorded()
        if record and folder is not None:
            failing = {v.method for v in rows if v.passed is False}
            audit.record(folder, failing)  # after the verdicts: a tau is not compared with itself
    inexact = {s.name for s in subjects if not s.exact}
    written = page.write(out, rows, audit.touched, recorded, audit.facts(), config.title, level, inexact)
    click.echo(page.plain(rows, config.title, level))
    for path in written:
        click.echo(path)
    if as_json:
        click.echo(json.dumps([asdict(v) for v in rows]))
    problems = verdicts.overall(rows, {s.name: s.exact for s in subjects} | {"all": True})
    if problems:
        raise UserError("; ".join(problems))
