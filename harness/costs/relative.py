"""Tables of costs as what policies weigh drafting by: each part in steps of plain decoding, at one context, under a name with a
hash."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import methods
from harness.common.errors import UserError
from harness.common.plain_names import HASH, made_plain, split_hash
from harness.costs.table import CostTable, as_json, read, read_all
from methods.engine.relative_costs import RelativeCosts, known, register, relative_costs

CONTEXT = 256  # tokens: near the mean of the six tasks' prompts and half an answer


def table_name(table: CostTable) -> str:
    """The name of a table in options: model, machine, and 12 digits of the hash of what it says."""
    sha = hashlib.sha256(as_json(table).encode()).hexdigest()[:HASH]
    over = f"-{table.frequent}" if table.frequent else ""
    m = table.machine
    where = m.gpu or f"{m.cpu}-{m.threads}-threads"
    return f"{made_plain(f'{table.model}{over}-{where}-{m.dtype}')}@{sha}"


def relative(table: CostTable, context: int = CONTEXT) -> RelativeCosts:
    """
    Raises:
        UserError: no draft head was measured.
    """
    if not table.has(methods.EAGLE):
        raise UserError(
            f"the costs of {table.model} on {table.machine.label} are without a draft head: no policy can weigh by them"
        )
    plain, o = table.plain(context).ms + table.outside.plain, table.outside
    heads = [head for at in table.contexts if (head := at.of(methods.EAGLE))]
    rows = sorted({n for at in table.contexts for n in at.verify})
    levels = sorted({n for head in heads for level in head.levels for n in level})
    return RelativeCosts(
        table_name(table), tuple((n, table.verify(n, context).ms / plain) for n in rows), tuple((n, table.level(n, context).ms /
        plain) for n in levels), root=table.root(context).ms / plain, observe=table.observe(2, context).ms / plain, step=(o.step
        + 2 * o.token) / plain, level=o.level / plain, row=o.row / plain, node=o.node / plain,
    )  # fmt: skip


@cache
def _shipped() -> dict[str, CostTable]:
    return {table_name(table): table for table in read_all(None)}


def named(text: str) -> str:
    """Costs as an option names them, made known to the policies; -> their name, with a hash where they are of a table.

    text: a built-in name, a file of `harness costs`, or the name of a shipped table; a table's with its hash or without.

    Raises:
        UserError: there are no such costs, or a table is another than the hash says.
    """
    try:
        return relative_costs(text).name
    except ValueError:
        pass
    given, told = split_hash(text)
    shipped = {split_hash(name)[0]: table for name, table in _shipped().items()}
    if given in shipped:
        table = shipped[given]
    elif path := next((path for path in (Path(text), Path(given)) if path.is_file()), None):
        table, told = read(path), told if path == Path(given) else ""
    else:
        there = ", ".join([*known(), *shipped])
        raise UserError(f"costs={text!r}: no such file, and none of the known costs: {there}")
    name = table_name(table)
    if told and told != split_hash(name)[1]:
        raise UserError(f"costs={text!r}: the table is another one now ({given}@{split_hash(name)[1]})")
    return _registered(table)


_TABLES: dict[str, CostTable] = {}


def _registered(table: CostTable) -> str:
    name = register(relative(table))
    _TABLES[name] = table
    return name


def table_of(name: str) -> CostTable | None:
    """The table whose costs are known by a name; None of a built-in."""
    return _TABLES.get(name)
