"""The known texts of a ledger: each prompt, vanilla's answer to it, and what vanilla would have said after its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from harness.audit.probe.ledger_pairs import LedgerPrompts
from harness.common.errors import UserError
from harness.common.names import VANILLA
from harness.ledger.record import Record
from harness.load.model import Loaded
from harness.replay.known import BEYOND, KnownText
from methods.base import Drafter, SamplerParams
from methods.engine.loop import prefilled
from methods.engine.sampling import Chooser, stream_key


@dataclass(frozen=True, slots=True)
class Answered:
    """Vanilla's record of one turn, and the records of its conversation's turns, which the prompt is made of."""

    record: Record
    turns: tuple[Record, ...]

    @property
    def params(self) -> SamplerParams:
        """How the record was decoded, its stop ids aside."""
        r = self.record
        key = stream_key(r["seed"], r["sample_id"], r["turn"], r["repeat"])
        return SamplerParams(r["max_new_tokens"], temperature=r["temperature"], top_p=r["top_p"], key=key)


def answered(records: Iterable[Record], loaded: Loaded) -> list[Answered]:
    """Vanilla's answers in a ledger, of the model that is loaded.

    Raises:
        UserError: there is none of this target in this dtype; what differs is named.
    """
    own = [r for r in records if r["method"] == VANILLA and r["status"] == "ok" and not r["is_warmup"]]
    if not own:
        raise UserError("the ledger holds no answer of vanilla's: it is what a replay replays")
    mine = [r for r in own if r["target_id"] == loaded.identity.id and r["dtype"] == loaded.dtype]
    if not mine:
        r = own[0]
        parts = loaded.identity.parts
        differ = [name for name, value in (r["target_parts"] or {}).items() if parts.get(name) != value]
        what = f"{r['model']} in {r['dtype']}" + (f" ({', '.join(differ)} differ)" if differ else "")
        raise UserError(f"the ledger's answers are of {what}, and {loaded.config.name} in {loaded.dtype} is loaded: a replay has "
                        "to be of the very target that answered")  # fmt: skip
    turns: dict[tuple[str, str, str], list[Record]] = {}
    for r in mine:
        if r["temperature"] == 0:
            turns.setdefault((r["task"], r["source"], r["sample_id"]), []).append(r)
    return [Answered(r, tuple(turns.get((r["task"], r["source"], r["sample_id"]), []))) for r in mine]


def known_text(
    loaded: Loaded, prompts: LedgerPrompts, answer: Answered, drafter: Drafter | None = None
) -> tuple[KnownText, torch.Tensor]:
    """(the text, the target's features over prompt and answer [n, ..], as the drafter observes them).

    Raises:
        UserError: the prompt is not here, or is another than the record's.
    """
    ids, record = prompts.ids_of(answer.record, answer.turns, loaded), answer.record
    features, beyond = went_on(loaded, ids, record["token_ids"], answer.params, drafter)
    return KnownText(ids, list(record["token_ids"]), beyond), features


@torch.inference_mode()
def went_on(
    loaded: Loaded, prompt: Sequence[int], answer: Sequence[int], params: SamplerParams, drafter: Drafter | None = None
) -> tuple[torch.Tensor, list[int]]:
    """(the target's features over prompt and answer, as the drafter observes them; `BEYOND` tokens that vanilla would have gone
    on with)."""
    target, chooser = loaded.target, Chooser.of(params)
    with target.decoding():
        features, logits = prefilled(target, drafter, [*prompt, *answer], BEYOND)
        features = features.clone()
        beyond = [chooser.token(logits, len(answer))]
        while len(beyond) < BEYOND:
            beyond.append(chooser.token(target.step(beyond[-1]), len(answer) + len(beyond)))
    return features, beyond


def by_conversation(answers: Iterable[Answered]) -> Iterator[tuple[tuple[str, str], list[Answered]]]:
    """Answers of one task's conversation together, in the ledger's order."""
    found: dict[tuple[str, str], list[Answered]] = {}
    for a in answers:
        found.setdefault((a.record["task"], a.record["sample_id"]), []).append(a)
    yield from found.items()
