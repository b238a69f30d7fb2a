"""What an engine is asked for, what it answers, and what must hold of an answer before it is recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from harness.common.errors import UserError
from methods.base import SamplerParams
from methods.engine.stopping import Output


class BadAnswer(UserError):
    """What an engine answered to one prompt cannot be recorded. The text says why, in one line."""


class EngineGone(UserError):
    """An engine does not answer, or not as the one that was asked for: whatever is asked after it fails as well."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an engine tells of itself.

    `engine`: whose it is; `version`: as it says, "untold" where it does not. `model`: the id by which requests name it.
    `settings`: of the model (dtype, sizes ...), by the engine's own words; a baseline must have the same. `drafting`: of its
    speculation; empty where it tells of none. `tells`: how it speculates, with what, or only whether, or nothing of it.
    """

    engine: str
    version: str
    model: str
    settings: Mapping[str, str] = field(default_factory=dict)
    drafting: Mapping[str, str] = field(default_factory=dict)
    tells: Literal["how", "whether", "nothing"] = "how"

    @property
    def name(self) -> str:
        """`vllm 0.33.0`."""
        return f"{self.engine} {self.version}"

    @property
    def told(self) -> Identity:
        """The same for records: of a file's path, which is of this machine alone, the name."""
        settings, drafting = ({k: _no_path(v) for k, v in told.items()} for told in (self.settings, self.drafting))
        return replace(self, model=_no_path(self.model), settings=settings, drafting=drafting)


def _no_path(text: str) -> str:
    is_path = text.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:[\\/]", text) is not None
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if is_path else text


class Texts(Protocol):
    """The tokenizer of the model here."""

    def text_of(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens included."""
        ...

    def shown(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens left out, nothing cleaned up: what an engine streams of them."""
        ...

    def ids_of(self, text: str) -> list[int]:
        """The ids of a text, to which nothing is added."""
        ...

    def adds_first(self) -> list[int]:
        """What the tokenizer itself puts before a text: BOS, or nothing."""
        ...

    def turn_end(self) -> int | None:
        """The one stop id that the prompt format ends an answer with; None where there is none, or several."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt, and how it is to be answered."""

    prompt_ids: list[int]
    params: SamplerParams
    texts: Texts

    @property
    def stop_ids(self) -> list[int]:
        return sorted(self.params.stop_ids)

    @property
    def seed(self) -> int:
        """Of the engine's own generator: 31 bits, which every engine takes."""
        return self.params.key & 0x7FFFFFFF

    def prompt_text(self) -> str:
        """The prompt for an engine that takes no token ids. What its tokenizer puts in front itself is left out.

        Raises:
            BadAnswer: the text has other ids than the prompt, whoever tokenises it.
        """
        first = self.texts.adds_first()
        ids = self.prompt_ids[len(first) :] if first and self.prompt_ids[: len(first)] == first else self.prompt_ids
        text = self.texts.text_of(ids)
        if self.texts.ids_of(text) != ids:
            raise BadAnswer("the engine takes texts alone, and this prompt's text does not give its token ids back")
        return text


@dataclass(frozen=True, slots=True)
class Counts:
    """What an engine's own counters tell of one answer; None where they do not. `steps`: target forwards after the prefill.
    `drafted`, `accepted`: draft tokens, accepted ones before any cutting. `counter`: which counters these are. `why`: why there
    are no steps; empty where there are."""

    steps: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    counter: str = ""
    why: str = ""


@dataclass(slots=True)
class Answer:
    """What came of one request.

    `token_ids`: new tokens, a stop id included. `first_s`: seconds from the request to the first token; `n_first`: tokens that
    came with it, None if that is not known. `text`: as streamed. `model`: whose answer it says it is. `prompt_as`: `ids` or
    `text`; `ids_from`: `engine`, or `text` where the text was tokenised here. `n_prompt`, `n_tokens`: as the engine counts, None
    where it does not; `n_cached`: of the prompt, tokens that it had computed before. `why_ended`: the engine's word. `wall_s`:
    seconds from the request to the last event. `counts`: asked off the clock, once.
    """

    token_ids: list[int]
    first_s: float
    n_first: int | None
    text: str
    model: str | None
    prompt_as: str
    ids_from: str
    n_prompt: int | None
    n_tokens: int | None
    n_cached: int | None
    why_ended: str
    wall_s: float
    counts: Callable[[], Counts]

    def counted(self) -> Counts:
        """`counts`, where they can be read and can be of this answer; else a `why` and no steps."""
        try:
            told = self.counts()
        except (UserError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
            said = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
            return Counts(why=f"its counters cannot be read: {' '.join(said.split())}")
        n, steps, drafted, accepted = len(self.token_ids), told.steps, told.drafted, told.accepted
        if any(count is not None and count < 0 for count in (steps, drafted, accepted)) or (
            drafted is not None and accepted is not None and accepted > drafted
        ):
            return Counts(why=f"its {told.counter} does not add up: {steps} steps, {accepted} accepted of {drafted} drafted")
        if steps is not None and not (0 < steps < n or steps == n - 1 == 0):
            return replace(told, steps=None, why=f"its {told.counter} does not add up: {steps} steps, {n} tokens")
        return told


def checked(answer: Answer, asked: Asked, identity: Identity) -> str:
    """How the answer ended: `stop` or `length`, by the one stop rule.

    Raises:
        EngineGone: it is another model's than was asked for.
        BadAnswer: the engine read another prompt, counted other tokens than it streamed, ended early or late, or its text is not
            that of its ids by the tokenizer here.
    """
    if answer.model is not None and answer.model != identity.model:
        raise EngineGone(f"it answers as {answer.model!r}, and {identity.model!r} was asked for")
    n_prompt, ids = len(asked.prompt_ids), answer.token_ids
    if answer.n_prompt is not None and answer.n_prompt != n_prompt:
        raise BadAnswer(f"it read a prompt of {answer.n_prompt} tokens, and {n_prompt} were asked ({answer.prompt_as}): another "
                        "tokenizer, or a prompt cut short")  # fmt: skip
    if answer.n_tokens is not None and answer.n_tokens != len(ids):
        raise BadAnswer(f"it counted {answer.n_tokens} tokens and streamed {len(ids)}")
    if not ids:
        raise BadAnswer(f"it ended without a token ({answer.why_ended})")
    output = Output(asked.params)
    output.extend(ids)
    if len(output.token_ids) < len(ids):
        raise BadAnswer(f"{len(ids) - len(output.token_ids)} tokens follow where the output ends ({output.finish} at token "
                        f"{len(output.token_ids)}): another stop rule than was asked for")  # fmt: skip
    if output.finish is None:
        raise BadAnswer(f"it ended after {len(ids)} of {asked.params.max_new_tokens} tokens ({answer.why_ended}), the last is "
                        f"{ids[-1]}, and stop ids are {', '.join(map(str, asked.stop_ids)) or 'none'}")  # fmt: skip
    _check_text(answer, asked)
    return output.finish


def _check_text(answer: Answer, asked: Asked) -> None:
    """Whoever tokenises otherwise serves another model, whatever it is called. Bytes that are no whole character are left out."""
    if answer.ids_from == "text":
        return
    theirs, ours = (text.replace("\ufffd", "").strip() for text in (answer.text, asked.texts.shown(answer.token_ids)))
    if theirs != ours:
        at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
        raise BadAnswer(f"its text is not that of its token ids here: {theirs[at : at + 20]!r} for {ours[at : at + 20]!r} at "
                        f"character {at}: another tokenizer serves there")  # fmt: skip


def from_text(text: str, n_tokens: int | None, ended_by_stop: bool, asked: Asked, ended_at: object = None) -> list[int]:
    """The ids of an answer whose engine streams text alone: the text tokenised here. The counts must agree.

    ended_by_stop: the engine ended at a stop id, which is no part of the text. It is `ended_at` where the engine tells, else the
    only one, else the one that ends a turn by the prompt format.

    Raises:
        BadAnswer: the engine counted another number, or it does not say which stop id it was.
    """
    ids = asked.texts.ids_of(text)
    if n_tokens is None:
        raise BadAnswer("it streams text alone and does not count its tokens: what they were cannot be told")
    if ended_by_stop and n_tokens == len(ids) + 1:
        can_be = [i for i in (ended_at, asked.texts.turn_end()) if i in asked.stop_ids]
        if len(asked.stop_ids) != 1 and not can_be:
            raise BadAnswer(f"it does not say at which of the stop ids {', '.join(map(str, asked.stop_ids))} it ended")
        return [*ids, *(can_be or asked.stop_ids)[:1]]
    if n_tokens != len(ids):
        raise BadAnswer(f"its text has {len(ids)} tokens here and it counted {n_tokens}: what they were cannot be told")
    return ids


def steps_by_drafts(n_tokens: int, drafts: int, drafted: int, accepted: int, counter: str, told: int | None) -> Counts:
    """Steps that an engine counts, where its counters of drafts agree with them.

    Every step emits the drafts that it accepted and one token more. What the last one emitted beyond the output's end was cut. So
    n_tokens - 1 = steps + accepted - cut, and cut is at most what one step drafts. Drafts alone do not tell the steps: as many
    steps without a draft as tokens were cut leave the same counters.

    n_tokens: of the answer, the prefill's included. drafts: steps that verified drafts. told: all steps after the prefill; None
    where the engine does not count them.
    """
    most = -(-drafted // drafts) if drafts else 0  # tokens drafted a step: the mean, rounded up
    if told is None:
        why = "it counts steps with a draft, and does not tell of those without"
    elif told < drafts or not 0 <= told + accepted - (n_tokens - 1) <= max(most, 1):
        why = f"its counters do not add up: {told} steps, {accepted} accepted, {n_tokens} tokens"
    else:
        return Counts(told, drafted, accepted, counter)
    return Counts(None, drafted, accepted, counter, why)


def needs_same(own: Identity, base: Identity) -> Collection[str]:
    """In what two engines differ that must be one engine with speculation on and off: `version: 1 and 2` each."""
    pairs = {"engine": (own.engine, base.engine), "version": (own.version, base.version), "model": (own.model, base.model)}
    pairs |= {key: (own.settings.get(key, "untold"), base.settings.get(key, "untold"))
              for key in sorted({*own.settings, *base.settings})}  # fmt: skip
    return [f"{key}: {a} and {b}" for key, (a, b) in pairs.items() if a != b]
