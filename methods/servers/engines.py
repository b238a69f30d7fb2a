"""Which engine answers at an address, found out once a process, and one answer of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from harness.common.errors import UserError, unknown
from methods.servers import llama_cpp, openai, sglang, vllm
from methods.servers.answer import Answer, Asked, EngineGone, Identity
from methods.servers.wire import Address, get


class Adapter(Protocol):
    """What a module of this folder has for its engine."""

    NAME: str

    def identity(self, address: Address, card: Mapping[str, Any]) -> Identity: ...

    def ask(self, address: Address, who: Identity, asked: Asked) -> Answer: ...

    def ready(self, address: Address) -> None:
        """Called off the clock before each request."""
        ...


ADAPTERS: tuple[Adapter, ...] = (vllm, sglang, llama_cpp, openai)
OWNERS = {"vllm": vllm, "sglang": sglang, "llamacpp": llama_cpp}
"""`owned_by` of `/v1/models`, which these engines fill with their own names."""
AUTO = "auto"


class Engine(NamedTuple):
    """An engine that was found. `ask` has it answer one prompt."""

    address: Address
    adapter: Adapter
    identity: Identity

    def ask(self, asked: Asked) -> Answer:
        return self.adapter.ask(self.address, self.identity, asked)


def check_engine(name: str) -> None:
    """Raises UserError where no engine has that name."""
    if name not in (names := [AUTO, *(adapter.NAME for adapter in ADAPTERS)]):
        raise unknown("engine", name, names)


_found: dict[Address, Engine] = {}


def forget() -> None:
    """Find engines anew: one may have been started again with other settings."""
    _found.clear()


def make_ready(address: Address) -> None:
    """Off the clock, before a request to an engine that was found."""
    if address in _found:
        _found[address].adapter.ready(address)


def connected(address: Address) -> Engine:
    """The engine at an address, found once.

    Raises:
        EngineGone: nobody answers, or nobody who speaks OpenAI's API.
        UserError: it serves several models and none was named, or not the one that was.
    """
    if address in _found:
        return _found[address]
    check_engine(address.engine)
    listed = get(address, "/v1/models")
    cards = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(cards, list) or not cards or not all(isinstance(card, dict) and card.get("id") for card in cards):
        raise EngineGone(f"no OpenAI-compatible engine answers at {address.url}: its /v1/models lists no model")
    by_id = {str(card["id"]): card for card in cards}
    if not address.model and len(by_id) > 1:
        raise UserError(f"{address.url} serves several models: name one with --set model=ID, of {', '.join(sorted(by_id))}")
    if address.model and address.model not in by_id:
        raise unknown(f"model of {address.url}", address.model, by_id)
    card = by_id[address.model] if address.model else cards[0]
    known = {adapter.NAME: adapter for adapter in ADAPTERS}
    adapter: Adapter = OWNERS.get(str(card.get("owned_by")), openai) if address.engine == AUTO else known[address.engine]
    _found[address] = Engine(address, adapter, adapter.identity(address, card))
    return _found[address]
