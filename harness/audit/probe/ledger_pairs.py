"""A ledger's greedy outputs beside vanilla's to the same prompts: the pairs that layer 3 explains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks
from harness.common.errors import UserError
from harness.common.names import VANILLA
from harness.ledger.record import Record
from harness.metrics.divergences import first_divergence
from harness.metrics.pairing import side_of, variant_of


@dataclass(frozen=True, slots=True)
class LedgerPair:
    """One output of a method and vanilla's. `at`: the first difference, None where the ids are equal."""

    record: Record
    vanilla: Record
    at: int | None
    turns: tuple[Record, ...]  # vanilla's greedy answers among which the prompt's earlier turns are

    @property
    def method(self) -> str:
        return str(self.record["method"])

    @property
    def label(self) -> str:
        """The cell it belongs to: the method, with its preset where that is not the default."""
        preset = self.record["preset"]
        return self.method if preset == "paper" else f"{self.method} ({preset})"

    @property
    def dtype(self) -> str:
        return str(self.record["dtype"])

    @property
    def key(self) -> str:
        return str(self.record["key"])

    @property
    def vanilla_key(self) -> str:
        return str(self.vanilla["key"])

    @property
    def n(self) -> int:
        return len(self.record["token_ids"])

    @property
    def common(self) -> list[int]:
        ids: list[int] = self.record["token_ids"]
        return ids[: self.at]

    @property
    def tokens(self) -> tuple[int | None, int | None]:
        """Vanilla's and the method's token at the difference; None where the output had ended."""
        assert self.at is not None
        ours, theirs = ((r["token_ids"][self.at] if self.at < len(r["token_ids"]) else None) for r in (self.vanilla, self.record))
        return ours, theirs


def compared(ledger: Iterable[Record]) -> tuple[list[LedgerPair], int]:
    """Every greedy output that has vanilla's beside it, in the ledger's order; how many have not, or ended in an error."""
    greedy = [r for r in ledger if not r["is_warmup"] and r["temperature"] == 0]
    whole = [r for r in greedy if r["status"] == "ok"]
    n_errors = sum(r["status"] == "error" for r in greedy)
    base = side_of(r for r in whole if r["method"] == VANILLA)
    answers: dict[tuple[Any, ...], list[Record]] = {}
    for r in whole:
        if r["method"] == VANILLA:
            answers.setdefault((r["task"], r["source"], r["sample_id"]), []).append(r)
    found, n_alone = [], 0
    for variant in dict.fromkeys(variant_of(r) for r in whole if r["method"] != VANILLA):
        for key, record in side_of(r for r in whole if variant_of(r) == variant).items():
            if key in base:
                at = first_divergence(base[key]["token_ids"], record["token_ids"])
                turns = answers.get((record["task"], record["source"], record["sample_id"]), [])
                found.append(LedgerPair(record, base[key], at, tuple(turns)))
            else:
                n_alone += 1
    return found, n_alone + n_errors


def prompt_ids(pair: LedgerPair, loaded: Any, prompts_dir: Path | None, known: dict[Any, Any]) -> list[int]:
    """The token ids of a record's prompt, rendered anew and checked against the hash in the record. `known` caches prompt sets.

    Raises:
        UserError: the prompt, or the answer its later turn follows, is not at hand or is another.
    """
    record = pair.record
    where = f"{record['task']} {record['sample_id']} turn {record['turn']} ({record['source']})"
    name = (record["task"], record["source"], record["seed"])
    if name not in known:
        found = tasks.load(record["task"], source=record["source"], limit=10**6, prompts_dir=prompts_dir, seed=record["seed"])
        known[name] = {p.id: p for p in found.prompts}
    prompt = known[name].get(record["sample_id"])
    if prompt is None:
        raise UserError(f"the prompt of {where} is not among the prompts here")
    chains: list[list[Record]] = [[]]  # rows of answers to the turns before the record's
    for turn in range(1, record["turn"]):
        answers = [r for r in pair.turns if r["turn"] == turn]
        chains = [[*chain, r] for chain in chains for r in answers]
    for chain in chains:
        dialogue = [("user", prompt.turns[0])]
        for answer, question in zip(chain, prompt.turns[1:], strict=False):
            dialogue += [("assistant", answer["text"]), ("user", question)]
        rendered = loaded.render(dialogue)
        if hashlib.sha256(rendered.encode()).hexdigest()[:16] == record["prompt_sha"]:
            ids: list[int] = loaded.encode(rendered)
            return ids
    raise UserError(f"the prompt of {where} here is not what the record was made from, or an earlier answer is not in the ledger")
