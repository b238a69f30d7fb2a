"""Which records may be compared: one setting, one environment, the same prompts on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from operator import itemgetter
from typing import Any

import methods
from harness.common.errors import UserError
from harness.common.names import SERVED_DTYPE
from harness.ledger.record import NEW_IN_3, Record, canonical_hash

# Two records are compared only where all of these are equal. Two folders may hold other weights or come from other machines.
# Within one folder, weights and machine must be equal too.
ACROSS_FOLDERS = ("task", "source", "sample_id", "turn", "repeat", "prompt_sha",
                  "model", "temperature", "top_p", "dtype", "threads", "max_new_tokens", "seed")  # fmt: skip
WITHIN_FOLDER = (*ACROSS_FOLDERS, "target_sha", "target_id", "baseline_sha", "machine")

Conversation = tuple[str, str, str]
Side = Mapping[tuple[Any, ...], Record]  # one method's records, by what pairs them with another's


@dataclass(frozen=True, slots=True)
class Setting:
    """What all arms of one comparison have in common, apart from the prompt. The fields are a record's."""

    model: str
    target_sha: str
    target_id: str  # empty where it is not known
    temperature: float
    top_p: float
    dtype: str
    threads: int
    max_new_tokens: int
    seed: int
    machine: str
    system: str = "paper"

    def title(self) -> str:
        top_p = f", top-p {self.top_p:g}" if self.top_p < 1 else ""
        system = "" if self.system == "paper" else f", {'no' if self.system == 'none' else 'another'} system prompt"
        how = "served over HTTP" if self.dtype == SERVED_DTYPE else f"{self.dtype}, {self.threads} threads"
        return (
            f"{self.model}, T = {self.temperature:g}{top_p}, {how}, "
            f"at most {self.max_new_tokens} new tokens, seed {self.seed}{system}"
        )


def titles(settings: Iterable[Setting]) -> dict[Setting, str]:
    """The title of each setting, with its machine where another one of these differs in nothing else that a title tells."""
    found = list(dict.fromkeys(settings))
    machines: dict[str, set[str]] = defaultdict(set)
    for s in found:
        machines[s.title()].add(s.machine)
    return {s: f"{s.title()}, on {s.machine}" if len(machines[s.title()]) > 1 else s.title() for s in found}


_SETTING = tuple(f.name for f in fields(Setting))
_settings: dict[tuple[Any, ...], Setting] = {}


def setting_of(record: Record) -> Setting:
    """Records of one setting get one object: as a key it is found by its identity."""
    values = fields_of(record, _SETTING)
    found = _settings.get(values)
    return found or _settings.setdefault(values, Setting(*values))


Variant = tuple[str, str, str, str, str]
"""What tells one arm from another within a setting: method, preset, hash of the options, drafter, code."""


def variant_of(record: Record) -> Variant:
    """Of schema 2 the code is left out: those hashes are of another formula."""
    head, code = record["head_id"] or record["head_sha"] or "", record["code_sha"] if record["schema"] > 2 else ""
    return record["method"], record["preset"], _options_hash(record["options"]), head, code


_hashes: dict[str, str] = {}


def _options_hash(options: Mapping[str, Any]) -> str:
    written = repr(options)
    if written not in _hashes:
        _hashes[written] = canonical_hash(options)
    return _hashes[written]


def engine_of(record: Record) -> str:
    """Whose forward measured a record, in words; empty where it does not say."""
    return (record.get("target_parts") or {}).get("engine", "")


def is_row_invariant(record: Record) -> bool:
    """Whether each row of a forward had the bits of plain decoding. False of records that do not say."""
    return bool(record.get("row_invariant"))


def conversation_of(record: Record) -> Conversation:
    return record["task"], record["source"], record["sample_id"]


def measured(records: Iterable[Record]) -> list[Record]:
    """Without warm-ups and without prompts that failed or were skipped."""
    return [r for r in records if r["status"] == "ok" and not r["is_warmup"]]


def side_of(records: Iterable[Record], by: Sequence[str] = WITHIN_FOLDER) -> dict[tuple[Any, ...], Record]:
    """The measured records of one method, by what pairs them. The first counts where there are two for a prompt and turn."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in measured(records):
        found.setdefault(fields_of(record, by), record)
    return found


def compared(own: Side, base: Side) -> Side:
    """The records of `own` that have a counterpart in `base`; a conversation counts only with all its turns.

    Two-turn tasks need vanilla's first turn even where no baseline was asked for. That turn alone is no baseline.
    """
    unpaired = {(conversation_of(r), r["repeat"]) for key, r in own.items() if key not in base}
    if not unpaired:
        return own
    return {key: r for key, r in own.items() if (conversation_of(r), r["repeat"]) not in unpaired}


def without_loops(own: Side, base: Side) -> Side:
    """The records of `own` where neither arm looped."""
    return {k: r for k, r in own.items() if not r["looped"] and not (k in base and base[k]["looped"])}


def field(record: Record, name: str) -> Any:
    # a record straight from a run has no machine: it is the one at hand
    value = record.get(name, "paper" if name == "system" else "")
    return "" if value is None and name in NEW_IN_3 else value


def fields_of(record: Record, names: Sequence[str]) -> tuple[Any, ...]:
    """Several of a record's fields, each as `field` gives it."""
    try:
        values: tuple[Any, ...] = _getter(tuple(names))(record)
    except KeyError:
        values = (None,)
    return tuple(field(record, name) for name in names) if None in values else values


@cache
def _getter(names: tuple[str, ...]) -> Callable[[Record], Any]:
    return itemgetter(*names)


def by_machine(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records apart by what measured them, in the order of its name. A machine on which nothing succeeded is left out where
    another one is there."""
    records = list(records)
    found: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        found[field(r, "machine")].append(r)
    if len(found) < 2:
        return dict(found) or {"": []}
    return {name: own for name, own in sorted(found.items()) if measured(own)} or {"": records}


# What must be one value over all records of a model before a verdict is given on it.
ONE_ENVIRONMENT = ("machine", "target_sha", "target_id", "baseline_sha", "dtype", "threads", "max_new_tokens", "seed", "top_p",
                   "system")  # fmt: skip


def one_environment(records: Iterable[Record], where: object) -> list[Record]:
    """The measured records of one model, as they are.

    Raises:
        UserError: several environments, several heads for methods that share one, or several options for one method. The message
            names the key.
    """
    found = measured(records)
    arms: dict[str, list[Record]] = defaultdict(list)
    heads: dict[str, list[Record]] = defaultdict(list)
    for r in found:
        arms[f"{r['method']} ({r['preset']}) at T = {r['temperature']:g}"].append(r)  # tuned options are a temperature's own
        heads["all eagle methods" if methods.drafter_of(r["method"]) == methods.EAGLE else r["method"]].append(r)
    checks = [("the records", key, found) for key in ONE_ENVIRONMENT]
    checks += [(whose, "head_sha", own) for whose, own in heads.items()]
    checks += [(whose, name, own) for whose, own in arms.items() for name in ("options", "head_id", "code_sha")]
    for whose, key, own in checks:
        values = sorted({str(value) for r in own if (value := _judged(r, key)) is not None})  # plain decoding has no head
        if len(values) > 1:
            raise UserError(f"{where} holds mixed environments: {_named(key, own)} of {whose} of {found[0]['model']} is "
                            f"{' and '.join(values)}; give a folder whose records agree in it")  # fmt: skip
    return found


def _judged(record: Record, key: str) -> Any:
    """A field's value, None where it is not to be compared: hashes of code in schema 2 are of another formula."""
    return (None if key == "code_sha" and record["schema"] == 2 else field(record, key)) or None


def _named(key: str, records: Iterable[Record]) -> str:
    """`target_id (config)`: of an identity the parts that differ."""
    if key != "target_id":
        return key
    known = [parts for r in records if (parts := r.get("target_parts"))]
    names = [name for name in known[0] if len({parts.get(name) for parts in known}) > 1] if known else []
    return f"{key} ({', '.join(names)})" if names else key


def one_source(records: Sequence[Record]) -> list[Record]:
    """One source of prompts for each task: the paper's where there are any, else the one with most records."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for r in records:
        counts[r["task"]][r["source"]] += 1
    chosen = {task: max(found, key=lambda s: (s == "paper", found[s], s)) for task, found in counts.items()}
    return [r for r in records if r["source"] == chosen[r["task"]]]
