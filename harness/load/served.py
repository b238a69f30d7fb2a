"""What stands for a loaded model where an engine elsewhere decodes: its tokenizer, and what the engines tell of themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from harness.common.errors import UserError
from harness.common.names import SERVED_DTYPE, SERVER, SERVER_PLAIN
from harness.load.config import ModelConfig
from harness.load.identity import TargetIdentity, template_sha, tokenizer_sha
from harness.load.model import Loaded, encode
from harness.load.prompt_text import check_template, how_read, load_tokenizer, render
from harness.load.sentencepiece_ids import reference
from harness.load.weights import tokenizer_folder
from methods import Arm
from methods.engine.target import HFTarget
from methods.server import checked_address
from methods.servers.answer import Answer, Identity, needs_same
from methods.servers.engines import connected, forget


class ServedTarget:
    """In place of a target: it has no forward. Methods get the tokenizer of it, and hand it what was answered.

    `vocab_size`: the most ids that the model may emit. `engines`: what the engines tell of themselves, by method.
    """

    is_served = True
    is_row_invariant = runs_module = False
    forward_s = 0.0

    def __init__(self, tokenizer: Any, vocab_size: int, engines: Mapping[str, Identity], turn_end: int | None = None) -> None:
        self.vocab_size, self.device = vocab_size, torch.device("cpu")
        self.devices = (self.device,)
        self.engine_facts = {"engines": {name: _plain(who) for name, who in engines.items()}}
        self._tokenizer, self._engines, self._turn_end = tokenizer, dict(engines), turn_end
        self._clock = SimpleNamespace(n_started=0)
        self._answers: list[Answer] = []

    def drafting_id(self, method: str) -> str | None:
        """16 hex digits over what the engine tells of its speculation; None where it tells of none."""
        who = self._engines[method]
        return _sha(who.drafting) if who.drafting else None

    def keep(self, answer: Answer) -> None:
        self._answers.append(answer)

    def answer_of(self, ids: list[int]) -> Answer:
        """The answer that brought these ids: the very list. It is handed out once."""
        at = next(i for i, answer in enumerate(self._answers) if answer.token_ids is ids)
        return self._answers.pop(at)

    # ---- the tokenizer (`methods.servers.answer.Texts`) ----

    def text_of(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def shown(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def ids_of(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def adds_first(self) -> list[int]:
        ids: list[int] = self._tokenizer("").input_ids
        return ids

    def turn_end(self) -> int | None:
        return self._turn_end

    # ---- what a run asks of every target ----

    def decoding(self) -> Any:
        return nullcontext()

    def synchronise(self) -> None:
        """Nothing runs here."""

    def reset_peak(self) -> None:
        """Nothing is allocated here."""

    def peak_bytes(self) -> int:
        return 0


def load_served(config: ModelConfig, arms: Sequence[Arm]) -> Loaded:
    """The tokenizer of a model, and the engines that serve it, asked what they are. No weights are loaded.

    arms: those of `server` and `server-plain`.

    Raises:
        UserError: no tokenizer, an engine that does not answer, engines that are not the same, a baseline that tells of
            speculation, or an engine that tells of none, or not of what it drafts with.
    """
    forget()  # an engine may have been started anew
    engines = [(arm, _identity_of(arm).told) for arm in arms]
    plain = next((who for arm, who in engines if arm.name == SERVER_PLAIN), None)
    for arm, who in engines:
        if plain is not None and (differ := needs_same(who, plain)):
            raise UserError(f"the engine at {arm.options['url']} and its baseline differ in more than speculation: "
                            f"{'; '.join(differ)}")  # fmt: skip
        if arm.name == SERVER_PLAIN and who.drafting:
            told = ", ".join(f"{key} {value}" for key, value in who.drafting.items())
            raise UserError(f"the baseline at {arm.options['url']} tells of speculation ({told}): start it without")
        if arm.name == SERVER:
            _check_speculation(arm, who)
    folder = tokenizer_folder(config)
    tokenizer = load_tokenizer(folder)
    check_template(config, tokenizer, folder)
    theirs = reference(folder, tokenizer)
    template = template_sha(
        partial(render, config, tokenizer), lambda text: encode(config, tokenizer, text, theirs, "a probe of the template")
    )
    who = engines[0][1]
    identity = TargetIdentity(
        weights=f"{who.model}@{who.name}", config=_sha(who.settings), tokenizer=tokenizer_sha(folder, how_read(tokenizer)),
        template=template, stop_ids=" ".join(map(str, sorted(set(config.stop_ids)))), engine=f"{who.name} over HTTP",
    )  # fmt: skip
    target = ServedTarget(tokenizer, _vocab_size(folder, len(tokenizer)), {arm.name: own for arm, own in engines},
                          _turn_end(config, tokenizer))  # fmt: skip
    return Loaded(config, cast(HFTarget, target), tokenizer, SERVED_DTYPE, identity, {}, theirs)


def _check_speculation(arm: Arm, who: Identity) -> None:
    """
    Raises:
        UserError: an engine that would tell of its speculation tells of none; or nobody says what it drafts with:
            records of two heads could not be told apart.
    """
    if who.tells != "nothing" and not who.drafting:
        raise UserError(f"the engine at {arm.options['url']} does not speculate: start {who.engine} with speculation, or measure "
                        f"it with --method {SERVER_PLAIN}")  # fmt: skip
    if who.tells != "how" and not arm.options["drafts"]:
        raise UserError(f"the engine at {arm.options['url']} does not say what it drafts with: name it, --set drafts=NAME, so "
                        "that another's records are not taken for its own")  # fmt: skip


def _identity_of(arm: Arm) -> Identity:
    o = arm.options
    return connected(checked_address("url", o["url"], o["engine"], o["model"], o["timeout"])).identity


def _turn_end(config: ModelConfig, tokenizer: Any) -> int | None:
    """The stop id that the prompt format puts behind an answer: that between one and the next turn, if it is one alone."""
    answer = "An answer."
    text = render(config, tokenizer, [("user", "A"), ("assistant", answer), ("user", "B")])
    ids = tokenizer(text.partition(answer)[2].partition("B")[0], add_special_tokens=False).input_ids
    found = [i for i in ids if i in config.stop_ids]
    return found[0] if len(set(found)) == 1 else None


def _vocab_size(folder: Path, of_tokenizer: int) -> int:
    """A model's, which may have rows beyond the tokenizer's last id."""
    try:
        size = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        size = None
    return max(size, of_tokenizer) if isinstance(size, int) else of_tokenizer


def _plain(who: Identity) -> dict[str, Any]:
    return {"engine": who.engine, "version": who.version, "model": who.model, "settings": dict(who.settings),
            "drafting": dict(who.drafting)}  # fmt: skip


def _sha(value: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(value), sort_keys=True).encode()).hexdigest()[:16]
