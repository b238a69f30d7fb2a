"""What a line of a ledger must be before anything is computed from it.

Written by hand rather than with JSON Schema: every command reads whole ledgers, and this takes a tenth of the time.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from operator import gt
from typing import Any, NoReturn, cast

from pydantic_core import from_json

from harness.common.names import VANILLA
from harness.ledger.record import (
    CELL_FIELDS_OF,
    NEW_IN_3,
    READABLE,
    Record,
    StoredRecord,
    canonical_hash,
    is_looped,
    sample_key,
    warm_up_key,
)

SOURCES = ("paper", "hub", "pypi", "bundled", "file")
FINISHES = ("stop", "length", "context")
STATUSES = ("ok", "error", "skipped")
COLUMNS = ("tree_size", "accepted", "draft_s", "verify_s", "target_s", "drafter_s")

MOST_COUNT = 2**53  # more is no count: a double, and so any other reader of JSON, holds no larger whole number exactly
MOST_ID = 2**31  # no vocabulary is as large
MOST_S = 1e9  # 30 years
# More than a run lets pass (`harness.watch.check`): clocks of two devices differ, and there is time between steps.
SLACK, SLACK_S = 0.05, 0.002
UNTOLD, UNTOLD_S = 0.15, 0.15
CPU_SLACK_S = 0.02

Test = tuple[Callable[[Any], bool], str]
_HEX = re.compile(r"[0-9a-f]{16}").fullmatch


def shown(value: object) -> str:
    """A value of a file for a message: at most some 60 characters."""
    text = reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_count(x: object, least: int = 0, most: int = MOST_COUNT) -> bool:
    return type(x) is int and least <= x <= most


def is_number(x: object, least: float = 0.0, most: float = MOST_S) -> bool:
    """Whether it is a finite number in a range."""
    return type(x) in (int, float) and least <= cast(float, x) <= most


def is_text(x: object) -> bool:
    """Whether it is a text that can be written to a file: half a surrogate pair cannot."""
    return type(x) is str and (x.isascii() or not any("\ud800" <= c <= "\udfff" for c in x))


def are_counts(x: object, most: int = MOST_COUNT) -> bool:
    return type(x) is list and (not x or (set(map(type, x)) == {int} and min(x) >= 0 and max(x) <= most))


def are_seconds(x: object) -> bool:
    if type(x) is not list or not x:
        return type(x) is list
    # a sum unequal to itself: not a number
    return set(map(type, x)) <= {int, float} and min(x) >= 0 and max(x) <= MOST_S and (total := sum(x)) == total


def _or_null(test: Test) -> Test:
    is_right, what = test
    return lambda x: x is None or is_right(x), f"{what} or null"


_NAME: Test = (lambda x: x != "" and is_text(x), "a text")
_HASH: Test = (lambda x: type(x) is str and _HEX(x) is not None, "16 hex digits")
_COUNT: Test = (is_count, "a whole number from 0")
_COUNT_1: Test = (lambda x: is_count(x, 1), "a whole number from 1")
_SECONDS: Test = (is_number, "a number of seconds from 0")
_FLAG: Test = (lambda x: type(x) is bool, "true or false")
_ANY_TEXT: Test = (lambda x: type(x) is str, "a text")


def _one_of(*words: str) -> Test:
    return lambda x: type(x) is str and x in words, " or ".join(words)


_ALWAYS: dict[str, Test] = {
    "key": _HASH, "cell": _HASH, "run": _NAME, "model": _NAME, "source": _one_of(*SOURCES), "method": _NAME,
    "sample_id": _NAME, "category": (is_text, "a text"), "turn": _COUNT_1, "n_turns": _COUNT_1, "repeat": _COUNT,
    "is_warmup": _FLAG, "text": _ANY_TEXT, "wall_s": _or_null(_SECONDS), "peak_bytes": _or_null(_COUNT),
    "head_sha": _or_null(_NAME), "head_id": _or_null(_NAME), "turn1_sha": _or_null(_NAME),
    "status": _one_of(*STATUSES), "error": _or_null(_ANY_TEXT), "env": _HASH,
}  # fmt: skip
_COUNT_OR_NULL, _NAME_OR_NULL = _or_null(_COUNT), _or_null(_NAME)
_SERVED: dict[str, Test] = {
    "first_s": _SECONDS, "n_first": _COUNT_OR_NULL, "prompt_as": _one_of("ids", "text"), "ids_from": _one_of("engine", "text"),
    "n_cached": _COUNT_OR_NULL, "steps": _COUNT_OR_NULL, "drafted": _COUNT_OR_NULL, "accepted": _COUNT_OR_NULL,
    "counter": _NAME_OR_NULL, "why": _NAME_OR_NULL,
}  # fmt: skip
_IF_THERE: dict[str, Test] = {
    "cpu_s": _or_null(_SECONDS), "load": _or_null(_SECONDS), "n_special": _COUNT,
}  # fmt: skip
# What an answer file of others may not tell.
_TOLD: dict[str, Test] = {
    "target_sha": _NAME, "task": _NAME, "preset": _NAME, "exact": _FLAG, "options": (lambda x: type(x) is dict, "an object"),
    "temperature": (is_number, "a number from 0"), "dtype": _NAME, "threads": _COUNT_1, "max_new_tokens": _COUNT_1,
    "top_p": (lambda x: is_number(x, 0, 1) and x > 0, "a number over 0, at most 1"),
    "seed": (lambda x: is_count(x, -(2**63), 2**64), "a whole number of 64 bits"),
    "token_ids": (lambda x: are_counts(x, MOST_ID), "a list of token ids"), "n_prompt": _COUNT, "n_text_tokens": _COUNT,
    "n_cut": _COUNT, "looped": _FLAG, "prompts_sha": _NAME, "prompt_sha": _NAME, "code_sha": _NAME,
}  # fmt: skip
_NEW_IN_3: dict[str, Test] = {"target_id": _NAME, "baseline_sha": _NAME}
_IN_2 = {**_ALWAYS, **_TOLD, "finish": _or_null(_one_of(*FINISHES)), "prefill_s": _or_null(_SECONDS)}
_MEASURED = {2: {**_IN_2, **{name: _or_null(test) for name, test in _NEW_IN_3.items()}}, 3: {**_IN_2, **_NEW_IN_3}}
_NULL: Test = (lambda x: x is None, "null in an imported record")
_IMPORTED = {**_ALWAYS, **{name: _or_null(test) for name, test in (_TOLD | _NEW_IN_3).items()},
             **dict.fromkeys(("token_ids", "trace", "prefill_s", "finish"), _NULL),
             "is_warmup": (lambda x: x is False, "false in an imported record")}  # fmt: skip
_FOREIGN: dict[str, Test] = {
    "line": _COUNT_1, "new_tokens": _or_null(_COUNT), "steps": _or_null(_COUNT),
    "accept_lengths": _or_null((are_counts, "a list of whole numbers")),
}  # fmt: skip
_OF_BENCH: dict[str, Test] = {
    "told": (lambda x: type(x) is dict and all(is_number(value, most=1e15) for value in x.values()), "an object of numbers"),
    "tau_means": _NAME,
}


def record_of(line: bytes, imported: bool) -> Record:
    """The record of a line of `records.jsonl`, all but its cell's key checked (`check_cell`).

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    try:
        record = _quickly_read(line) or json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
        if type(record) is not dict:
            raise ValueError("not a JSON object")
        _check(record, imported)
    except RecursionError:
        raise ValueError("not a record: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from None
    except UnicodeDecodeError:
        raise ValueError("not JSON (not UTF-8)") from None
    return cast(Record, record)


def _quickly_read(line: bytes) -> dict[str, Any] | None:
    """What `json.loads` reads, in less than half the time; None where that is to read it, and to say what is wrong.

    This parser keeps the last of two equal names in silence. So the names it found are counted against those in the text, where
    each ends in `":` and a quote within a text in `\\"`.
    """
    try:
        record = from_json(line, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return None
    if type(record) is not dict or b" :" in line or b"\t:" in line or b"\r:" in line or b'\\\\":' in line:
        return None
    return record if _n_names(record) == line.count(b'":') - line.count(b'\\":') else None


def _n_names(value: dict[str, Any]) -> int:
    """Names in an object and in those that stand in it directly."""
    return len(value) + sum(_n_names(inner) for inner in value.values() if type(inner) is dict)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} stands in it twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is in it; only finite numbers may be")


def _check(record: dict[str, Any], imported: bool) -> None:
    schema = record.get("schema")
    if "schema" in record and not (type(schema) is int and schema in READABLE):
        known = " and ".join(map(str, READABLE))
        raise ValueError(f"record schema {shown(schema)}; this version reads schemas {known}")
    if schema == 2:
        record.update(dict.fromkeys(sorted(NEW_IN_3 - record.keys())))  # sets have no order, columns have
    if lacking := StoredRecord.__required_keys__ - record.keys():
        some = ", ".join(sorted(lacking)[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise ValueError(f"not a record (no {some})")
    if ("foreign" in record) != imported:
        raise ValueError(_OTHER_KIND[imported])
    for name, (is_right, what) in (_IMPORTED if imported else _MEASURED[record["schema"]]).items():
        if not is_right(record[name]):
            raise _wrong(name, record[name], what)
    for name, (is_right, what) in _IF_THERE.items():
        if name in record and not is_right(record[name]):
            raise _wrong(name, record[name], what)
    if record["turn"] > record["n_turns"]:
        raise ValueError(f"turn is {record['turn']} of {record['n_turns']}")
    (_check_foreign if imported else _check_trace)(record)
    if "served" in record:
        _check_served(record)
    _check_status(record, imported)
    what = "its sample, turn, repeat and prompt"
    if imported:
        own = canonical_hash([record["cell"], record["method"], record["sample_id"], record["repeat"], record["turn"]])
    elif record["is_warmup"]:
        own, what = warm_up_key(record["run"], record["method"], record["preset"]), "a warm-up of its run, method and preset"
    else:
        own = sample_key(record["cell"], record["sample_id"], record["turn"], record["repeat"], record["prompt_sha"])
    if own != record["key"]:
        raise ValueError(f"key is {record['key']}, and that of {what} is {own}: it was altered")


_OTHER_KIND = {
    False: "an imported answer file; only `harness table --results` reads those, and they stand in a folder of their own",
    True: "a record measured here; imported answer files stand in a folder of their own",
}


def _wrong(name: str, value: object, what: str) -> ValueError:
    return ValueError(f"{name} is {shown(value)}; it must be {what}")


def _check_foreign(record: Mapping[str, Any]) -> None:
    foreign = record["foreign"]
    if type(foreign) is not dict or foreign.keys() not in (_FOREIGN.keys(), (_FOREIGN | _OF_BENCH).keys()):
        raise _wrong("foreign", foreign, f"an object of {', '.join(_FOREIGN)}; of a benchmark also {', '.join(_OF_BENCH)}")
    for name, (is_right, what) in {**_FOREIGN, **(_OF_BENCH if len(foreign) > len(_FOREIGN) else {})}.items():
        if not is_right(foreign[name]):
            raise _wrong(f"foreign.{name}", foreign[name], what)


def _check_served(record: Mapping[str, Any]) -> None:
    """What an engine elsewhere told, and whether it agrees with itself and with the record."""
    served = record["served"]
    if type(served) is not dict or served.keys() != _SERVED.keys():
        raise _wrong("served", served, f"an object of {', '.join(_SERVED)}")
    for name, (is_right, what) in _SERVED.items():
        if not is_right(served[name]):
            raise _wrong(f"served.{name}", served[name], what)
    if record["trace"] is not None:
        raise ValueError("it has a trace and is served: an engine elsewhere keeps none")
    steps, n, wall = served["steps"], len(record["token_ids"]), record["wall_s"]
    if steps is not None and not (steps <= n - 1 and (steps > 0 or n == 1)):
        raise ValueError(f"served.steps is {steps}, and after the prefill's token there are {n - 1}")
    if (steps is None) != (served["why"] is not None):
        raise ValueError("served.why is to say why there are no steps, and nothing else")
    if served["drafted"] is not None and (served["accepted"] or 0) > served["drafted"]:
        raise ValueError(f"served.accepted is {served['accepted']} of {served['drafted']} drafted")
    if wall is not None and served["first_s"] > wall * (1 + SLACK) + SLACK_S:
        raise ValueError(f"served.first_s is {shown(served['first_s'])}, and wall_s is {shown(wall)}")


def _check_trace(record: Mapping[str, Any]) -> None:
    """Its columns and their arithmetic, and whether the parts fit into the whole."""
    trace, ids, wall = record["trace"], record["token_ids"], record["wall_s"]
    if record["looped"] != is_looped(ids):
        raise ValueError(f"looped is {record['looped']}, and its token_ids say {not record['looped']}")
    cpu = record.get("cpu_s")
    if wall is not None and cpu is not None and cpu > wall * (1 + SLACK) + CPU_SLACK_S:
        raise ValueError(f"cpu_s is {shown(cpu)}, of one thread, and wall_s is {shown(wall)}")
    if len(ids) > record["max_new_tokens"]:
        raise ValueError(f"token_ids holds {len(ids)} ids, and max_new_tokens is {record['max_new_tokens']}")
    parts = record["prefill_s"] or 0.0
    if trace is not None:
        if type(trace) is not dict or not trace.keys() >= set(COLUMNS):
            raise _wrong("trace", trace, f"null or an object of {', '.join(COLUMNS)}")
        for name in COLUMNS:
            if not (are_seconds if name.endswith("_s") else are_counts)(trace[name]):
                raise _wrong(f"trace.{name}", trace[name], f"a list of {'seconds' if name.endswith('_s') else 'counts'}")
        if len({len(trace[name]) for name in COLUMNS}) > 1:
            raise ValueError(f"trace: its columns have {', '.join(str(len(trace[name])) for name in COLUMNS)} entries")
        accepted = trace["accepted"]
        if record["method"] == VANILLA and any(trace["tree_size"]):
            raise ValueError(f"trace.tree_size is {shown(trace['tree_size'])}; {VANILLA} drafts nothing")
        if any(map(gt, accepted, trace["tree_size"])):
            raise ValueError("trace: a forward accepted more nodes than its tree has")
        drawn = 1 + sum(accepted) + len(accepted)
        if drawn - record["n_cut"] != len(ids):
            raise ValueError(f"token_ids holds {len(ids)} ids, and 1 + sum(accepted + 1) - n_cut is {drawn} - {record['n_cut']}")
        inside = sum(trace["target_s"]) + sum(trace["drafter_s"])
        parts += sum(trace["draft_s"]) + sum(trace["verify_s"])
        if wall is not None and cpu is not None and wall - parts > UNTOLD * wall + UNTOLD_S + max(wall - cpu, 0.0):
            raise ValueError(f"wall_s is {shown(wall)}, cpu_s {shown(cpu)}, and prefill_s and the steps take {parts:.6g} s")
        parts = max(parts, inside)
    if wall is not None and parts > wall * (1 + SLACK) + SLACK_S:
        raise ValueError(f"wall_s is {shown(wall)}, and its parts are {parts:.6g} s")


def _check_status(record: Mapping[str, Any], imported: bool) -> None:
    """What is measured has numbers; what failed or was skipped has none, and says why."""
    if record["status"] == "ok":
        if not record["wall_s"]:
            raise _wrong("wall_s", record["wall_s"], "over 0 where status is ok")
        if record["error"] is not None:
            raise _wrong("error", record["error"], "null where status is ok")
        if not imported and not (record["token_ids"] and record["finish"]):
            raise ValueError("token_ids or finish is lacking where status is ok")
        return
    for name in ("token_ids", "text", "wall_s", "prefill_s", "trace"):
        if record[name]:
            raise _wrong(name, record[name], f"empty where status is {record['status']}")
    if not record["error"]:
        raise _wrong("error", record["error"], f"a reason where status is {record['status']}")


def check_cell(record: Mapping[str, Any], system: str, known: dict[str, tuple[Any, ...]]) -> None:
    """Whether a record's cell key is that of its fields. A warm-up's budget is not its cell's: its key tells nothing.

    system: of its environment. In schema 2, prompts under another system prompt than the paper's are other prompts. known: what
    the cells found right so far are made of; one is added.

    Raises:
        ValueError: it is not.
    """
    if record["is_warmup"]:
        return
    cell, names = record["cell"], CELL_FIELDS_OF[record["schema"]]
    content = (record["schema"], system, *(record[name] for name in names))
    if known.get(cell) == content:
        return
    fields = dict(zip(names, content[2:], strict=True))
    if record["schema"] == 2 and system != "paper":
        fields["prompts_sha"] = hashlib.sha256(f"{fields['prompts_sha']} {system}".encode()).hexdigest()
    try:
        own = canonical_hash(fields)
    except (RecursionError, ValueError):
        raise _wrong("options", record["options"], "an object of finite numbers, texts and lists") from None
    if own != cell:
        raise ValueError(f"cell is {cell}, and that of its model, method, task, options ... is {own}: it was altered")
    known[cell] = content


_IN_ENV: tuple[tuple[str, type[Any], str], ...] = (
    ("packages", dict, "an object"), ("target_parts", dict, "an object"), ("system", str, "a text"), ("pages", str, "a text"),
    ("native", dict, "an object"), ("mode", str, "a text"), ("row_invariant", bool, "true or false"),
)  # fmt: skip


def env_of(text: bytes, name: str) -> dict[str, Any]:
    """The environment in a file, which its name is the hash of.

    Raises:
        ValueError: it is something else, or was altered.
    """
    try:
        env = json.loads(text, parse_constant=_no_constant)
        if type(env) is not dict:
            raise ValueError("no JSON object")
        json.dumps(env, ensure_ascii=False).encode()  # tables show parts of it
        own = canonical_hash({key: value for key, value in env.items() if key not in ("created", "hash")})
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if own != name:
        raise ValueError(f"altered: the hash of what it holds is {own}")
    for key, kind, what in _IN_ENV:
        if type(env.get(key, kind())) is not kind:
            raise _wrong(key, env[key], what)
    return env
