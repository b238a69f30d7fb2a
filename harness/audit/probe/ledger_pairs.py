"""A ledger's greedy outputs beside vanilla's to the same prompts: the pairs that layer 3 explains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks
from harness.common.errors import UserError
from harness.common.names import VANILLA
from harness.ledger.record import Record, canonical_hash
from harness.metrics.divergences import first_divergence
from harness.metrics.pairing import side_of, variant_of


@dataclass(frozen=True, slots=True)
class LedgerPair:
    """A method's output and vanilla's to the same prompt. `at`: the first position where their ids differ, None if none does.
    `turns`: vanilla's greedy answers, among them those to the prompt's earlier turns."""

    record: Record
    vanilla: Record
    at: int | None
    turns: tuple[Record, ...]

    @property
    def method(self) -> str:
        return str(self.record["method"])

    @property
    def label(self) -> str:
        """The name of its cell: the method, and its preset if that is not the default."""
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
    def ids_sha(self) -> str:
        """Hash of both outputs. A record's key is that of its settings: two ledgers may hold one key with different ids."""
        return canonical_hash([self.vanilla["token_ids"], self.record["token_ids"]])[:16]

    @property
    def n(self) -> int:
        return len(self.record["token_ids"])

    @property
    def common(self) -> list[int]:
        """The ids before the first difference."""
        ids: list[int] = self.record["token_ids"]
        return ids[: self.at]

    @property
    def tokens(self) -> tuple[int | None, int | None]:
        """Vanilla's and the method's token where they differ first. None: that output had ended."""
        assert self.at is not None
        ours, theirs = ((r["token_ids"][self.at] if self.at < len(r["token_ids"]) else None) for r in (self.vanilla, self.record))
        return ours, theirs


def compared(ledger: Iterable[Record]) -> tuple[list[LedgerPair], int]:
    """(every greedy output that has vanilla's beside it, in the ledger's order; how many have none, or ended in an error)."""
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


class LedgerPrompts:
    """The prompts that a ledger's records were made from."""

    def __init__(self, folder: Path | None = None):
        """folder: of the paper's prompt files, if the records' prompts are from there."""
        self._folder = folder
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}  # (task, source, seed) -> prompts by id

    def ids(self, pair: LedgerPair, loaded: Any) -> list[int]:
        """`ids_of` a pair's record."""
        return self.ids_of(pair.record, pair.turns, loaded)

    def ids_of(self, record: Record, turns: Sequence[Record], loaded: Any) -> list[int]:
        """The token ids of a record's prompt: rendered anew, and checked against the hash in the record.

        turns: vanilla's greedy answers to the same conversation's turns.

        Raises:
            UserError: the prompt, or the answer that its later turn follows, is not here or is another.
        """
        where = f"{record['task']} {record['sample_id']} turn {record['turn']} ({record['source']})"
        prompt = self._prompts_of(record).get(record["sample_id"])
        if prompt is None:
            raise UserError(f"the prompt of {where} is not among the prompts here")
        chains: list[list[Record]] = [[]]  # rows of answers to the turns before the record's
        for turn in range(1, record["turn"]):
            answers = [r for r in turns if r["turn"] == turn]
            chains = [[*chain, r] for chain in chains for r in answers]
        for chain in chains:
            dialogue = [("user", prompt.turns[0])]
            for answer, question in zip(chain, prompt.turns[1:], strict=False):
                dialogue += [("assistant", answer["text"]), ("user", question)]
            rendered = loaded.render(dialogue)
            if hashlib.sha256(rendered.encode()).hexdigest()[:16] == record["prompt_sha"]:
                ids: list[int] = loaded.encode(rendered, f"the prompt of {where}")
                return ids
        raise UserError(f"the prompt of {where} here is not the record's, or the ledger lacks the answer to an earlier turn")

    def _prompts_of(self, record: Record) -> dict[str, Any]:
        task, source, seed = name = record["task"], record["source"], record["seed"]
        if name not in self._known:
            folder = self._folder if source == "paper" else None
            found = tasks.load(task, source=source, limit=10**6, prompts_dir=folder, seed=seed)
            self._known[name] = {p.id: p for p in found.prompts}
        return self._known[name]
