"""The tau of every method, kept beside a draft head by `--record`. Later audits compare with it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.audit.probe.findings import Finding
from harness.common.errors import UserError
from harness.common.files import whole_file
from harness.ledger.record import canonical_hash

TAUS = "tau.json"  # the file beside the head
TAU_KEY = ("method", "options", "model", "target", "head", "frequent", "new_tokens")


def tau_key(entry: Mapping[str, Any]) -> str:
    """Hash of what two taus must share to be compared."""
    return canonical_hash([entry[name] for name in TAU_KEY])


def taus(head: Path) -> list[dict[str, Any]]:
    """What `--record` kept beside a head: an entry a method, with [emitted, forwards] by prompt in `runs`. Empty if nothing.

    Raises:
        UserError: the file is not what `--record` writes.
    """
    file = head / TAUS
    try:
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise TypeError(f"{type(found).__name__} instead of a list")
        for entry in found:
            tau_key(entry), entry["runs"].items()
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{file} is not what `harness verify --record` writes ({e}); remove it and record again") from None
    return found


def record(head: Path, findings: Sequence[Finding], failing: Collection[str]) -> None:
    """Keep each method's counts beside the head, in place of those of the same weights, options and length.

    failing: methods that are left out, because their tau would excuse the next loss.
    """
    kept = {tau_key(entry): entry for entry in taus(head)}
    for f in _greedy(findings):
        if f["method"] not in failing and f.get("forwards"):
            entry = kept.setdefault(tau_key(f), {name: f[name] for name in TAU_KEY} | {"runs": {}})
            entry["runs"][f["prompt_sha"]] = [f["emitted"], f["forwards"]]
    with whole_file(head / TAUS) as tmp:
        tmp.write_text(json.dumps(list(kept.values()), indent=1) + "\n")


def recorded(head: Path | None, findings: Sequence[Finding]) -> dict[tuple[str, str], Finding]:
    """(method, prompt) -> the counts kept beside the head for the same weights, options and length."""
    if head is None:
        return {}
    kept = {tau_key(entry): entry["runs"] for entry in taus(head)}
    found = {}
    for f in _greedy(findings):
        run = kept.get(tau_key(f), {}).get(f["prompt_sha"])
        if run is not None:
            found[f["method"], f["prompt"]] = {"emitted": run[0], "forwards": run[1]}
    return found


def _greedy(findings: Sequence[Finding]) -> Iterator[Finding]:
    whole = (f for f in findings if f["kind"] == "greedy" and "layers" not in f)
    return (f for f in whole if f["dtype"] == "float32" and not f.get("guided"))
