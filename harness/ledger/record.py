"""The record of one generation: its fields, its keys, and what makes one valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NotRequired, TypedDict


def text_sha(text: str) -> str:
    """First 16 hex digits of a text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ids_sha(ids: list[int]) -> str:
    """Hash of token ids, for naming a turn another record was built from."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


SCHEMA = 3
READABLE = (2, 3)  # of schema 2 it is not known which engine, configuration and template measured them

LOOP_WINDOW, LOOP_GRAM = 64, 8

_ALWAYS = ("prompts_sha", "task", "source", "method", "preset", "options", "temperature", "top_p", "dtype", "threads",
           "max_new_tokens", "seed")  # fmt: skip
# What one cell key names, by schema: two records with the same values may be pooled.
CELL_FIELDS_OF = {
    2: ("model", "target_sha", "head_sha", *_ALWAYS),
    3: ("model", "target_id", "head_id", "code_sha", *_ALWAYS),
}
CELL_FIELDS = CELL_FIELDS_OF[SCHEMA]
# What a cell has alone among the cells of one group, which are compared with one another; the rest is the group's.
_OWN_OF_A_CELL = ("method", "preset", "options", "head_sha", "head_id", "code_sha")
GROUP_FIELDS = tuple(name for name in CELL_FIELDS if name not in _OWN_OF_A_CELL)


class StoredTrace(TypedDict):
    """Columns with one entry per target forward after prefill; methods may add more columns."""

    tree_size: list[int]  # draft nodes, root excluded
    accepted: list[int]  # accepted draft tokens before cutting
    draft_s: list[float]
    verify_s: list[float]
    target_s: list[float]  # the part of both inside the target's forward, LM head included
    drafter_s: list[float]  # and inside the drafter's


class StoredRecord(TypedDict):
    """One prompt and turn, as measured; `record.schema.json` is the same in JSON Schema.

    1 + sum(accepted + 1) - n_cut == len(token_ids): the token of the prefill, then per forward the accepted drafts and
    the bonus token, less what the stop rule or the budget cut off. Where status is not `ok` there are no numbers.
    """

    schema: int
    key: str  # sample key: cell, sample, turn, repeat and prompt
    cell: str
    run: str  # id of the process run
    model: str
    target_sha: str  # of the weights
    target_id: str | None  # of all that decides the target's tokens; None: not known (schema 2)
    head_sha: str | None  # of the drafter's weights
    head_id: str | None  # of all that decides what the drafter drafts; None without one, and in schema 2
    task: str
    source: str  # paper | hub | pypi | bundled | file
    method: str
    preset: str
    exact: bool  # the method declares that its outputs follow the target's law
    options: dict[str, Any]  # all in force, defaults included
    sample_id: str
    category: str
    turn: int  # from 1
    n_turns: int
    repeat: int
    is_warmup: bool
    temperature: float
    top_p: float
    dtype: str
    threads: int
    max_new_tokens: int
    seed: int
    token_ids: list[int]
    text: str
    n_prompt: int  # tokens
    n_text_tokens: int  # tokens of `text` tokenised again: what some published ratios count
    n_cut: int
    looped: bool
    finish: str | None  # stop | length | context
    wall_s: float | None  # the whole generation, prefill included
    prefill_s: float | None
    trace: StoredTrace | None
    peak_bytes: int | None
    prompts_sha: str  # of the prompt set the cell is over
    prompt_sha: str  # of the rendered prompt
    turn1_sha: str | None  # the vanilla turn-1 ids a turn-2 prompt was built from
    status: str  # ok | error | skipped
    error: str | None
    env: str  # names the env file
    code_sha: str  # of the engine and the method's file
    baseline_sha: str | None  # vanilla's code_sha at the time; None in schema 2


NEW_IN_3 = frozenset({"target_id", "head_id", "baseline_sha"})


class Foreign(TypedDict):
    """What a file of another harness tells of a turn, or of a run or request of a benchmark; see `harness/exchange`."""

    line: int  # of the file, from 1
    new_tokens: int | None
    steps: int | None  # target forwards after prefill
    accept_lengths: list[int] | None  # accepted + 1 a forward
    told: NotRequired[dict[str, float]]  # of a benchmark: its numbers, by their names there
    tau_means: NotRequired[str]  # of a benchmark: what it counts as the tokens of a step


class Served(TypedDict):
    """What an engine elsewhere tells of one answer; None where it does not tell. Times are of this side's clock."""

    first_s: float  # from the request to the first token
    n_first: int | None  # tokens that came with it
    prompt_as: str  # ids | text: how the prompt was given
    ids_from: str  # engine | text: whose the token ids are
    n_cached: int | None  # tokens of the prompt that it had computed before
    steps: int | None  # target forwards after the prefill
    drafted: int | None
    accepted: int | None  # before any cutting
    counter: str | None  # which of its counters these are
    why: str | None  # why there are no steps


class Record(StoredRecord, total=False):
    """A record as `read` gives it. An imported one has `foreign`, and null for all that an answer file does not tell."""

    machine: str  # what measured it, from the env file
    system: str  # the prompt format's system prompt, from the env file: paper, none or the text
    target_parts: dict[str, str] | None  # what target_id is made of, from the env file; None where that does not say
    served: Served  # only in records of an engine elsewhere; they have no trace
    row_invariant: bool  # whether each row of a forward had the bits of plain decoding, from the env file
    cpu_s: float | None  # CPU seconds of the thread that decodes; earlier records lack it
    load: float | None  # of the machine over the last minute; earlier records lack it
    n_special: int  # special tokens that the tokenizer adds to a text; earlier records lack it, their tokenizers add none
    foreign: Foreign


READ_BESIDE = frozenset({"machine", "system", "target_parts", "row_invariant"})  # what `read` adds to a record from its env file


def canonical_hash(obj: Any) -> str:
    """First 16 hex digits of the sha256 of `obj` as canonical JSON; 1 and 1.0 are the same number."""
    return hashlib.sha256(_written(_plain(obj)).encode()).hexdigest()[:16]


_written = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode  # made once: it is asked for often


def _plain(obj: Any) -> Any:
    if isinstance(obj, str | int):  # most are
        return obj
    if isinstance(obj, float) and obj.is_integer():
        return int(obj)  # a temperature of 0 and one of 0.0 name the same cell
    if isinstance(obj, Mapping):
        return {key: _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    return obj


def cell_key(**fields: Any) -> str:
    """The key of a cell, over exactly `CELL_FIELDS`; a field too few or too many is a bug of the caller."""
    if set(fields) != set(CELL_FIELDS):
        raise TypeError(f"cell_key takes exactly {CELL_FIELDS}; differs in {sorted(set(fields) ^ set(CELL_FIELDS))}")
    return canonical_hash(fields)


def sample_key(cell: str, sample_id: str, turn: int, repeat: int, prompt_sha: str) -> str:
    return canonical_hash([cell, sample_id, turn, repeat, prompt_sha])


def conversation_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What all records have in common that one conversation gives in a group of cells: the methods', the baseline's, all turns.
    They stay on one machine, so that no ratio is of two."""
    return *(record[name] for name in GROUP_FIELDS), record["sample_id"], record["repeat"]


def warm_up_key(run: str, method: str, preset: str) -> str:
    return canonical_hash(["warm-up", run, method, preset])


def is_looped(token_ids: Sequence[int]) -> bool:
    """Whether the last 64 ids hold at most half distinct 8-grams; under 64 ids there is too little to tell.

    Small models fall into loops under greedy decoding, which every drafter predicts well: tau is then flattered.
    """
    last = list(token_ids[-LOOP_WINDOW:])
    if len(last) < LOOP_WINDOW:
        return False
    n_grams = LOOP_WINDOW - LOOP_GRAM + 1
    return 2 * len(set(zip(*(last[i : i + n_grams] for i in range(LOOP_GRAM)), strict=True))) <= n_grams


def validate(record: Mapping[str, Any]) -> None:
    """Check a stored record against the JSON Schema and its own arithmetic.

    Raises:
        ValueError: names the record's key, the field and what is wrong with it.
    """
    stored = {key: value for key, value in record.items() if key not in READ_BESIDE}
    problems = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in _validator().iter_errors(stored)]
    if not problems and (trace := stored["trace"]):
        drawn = 1 + sum(n + 1 for n in trace["accepted"])
        if drawn - stored["n_cut"] != len(stored["token_ids"]):
            problems.append(f"token_ids: 1 + sum(accepted + 1) - n_cut = {drawn} - {stored['n_cut']}, "
                            f"but there are {len(stored['token_ids'])}")  # fmt: skip
        if len({len(trace[column]) for column in ("tree_size", "accepted", "draft_s", "verify_s", "target_s", "drafter_s")}) > 1:
            problems.append("trace: the columns differ in length")
    if problems:
        raise ValueError(f"record {record.get('key')!r}: " + "; ".join(sorted(problems)))


@cache
def _validator() -> Any:
    import jsonschema  # here, because only checking needs it and it is slow to import

    schema = json.loads(resources.files("harness.ledger").joinpath("record.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)
