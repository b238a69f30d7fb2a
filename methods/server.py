"""An engine elsewhere, asked over HTTP at batch 1 like any method here, and the same engine without speculation: its baseline.

No target is loaded. The engine has its own weights, kernels and drafter; what it tells of them stands in the records. Times are
those of the stream as it arrives here: the first token's apart from the rest.
"""

from __future__ import annotations

from typing import Any

from harness.common.errors import UserError
from methods import SERVERS, method
from methods.base import Decode, Generation, SamplerParams
from methods.servers.answer import Asked, checked
from methods.servers.engines import check_engine, connected, make_ready
from methods.servers.wire import Address, check_url

PLACES = ("url", "baseline_url", "engine", "model", "timeout")
"""Options that say where an engine is found, not what it does: they are in no record and no label."""


@method("server", line="an engine elsewhere, over HTTP (external)", external=True, served=True, group=SERVERS, places=PLACES)
def server(
    url: str = "", baseline_url: str = "", engine: str = "auto", model: str = "", timeout: float = 120.0, drafts: str = ""
) -> Decode:  # fmt: skip
    """drafts: what it drafts with, in the user's words, for engines that do not say."""
    address = checked_address("url", url, engine, model, timeout)
    if baseline_url and checked_address("baseline_url", baseline_url, engine, model, timeout).is_same_place(address):
        raise UserError(f"baseline_url is url, {url}: the baseline is the same engine, started beside it without speculation")
    return _asking(address)


@method(
    "server-plain", line="the same engine with speculation off: the baseline of `server`", external=True, served=True,
    group=SERVERS, places=PLACES,
)  # fmt: skip
def server_plain(url: str = "", engine: str = "auto", model: str = "", timeout: float = 120.0) -> Decode:
    return _asking(checked_address("url", url, engine, model, timeout))


def checked_address(option: str, url: str, engine: str, model: str, timeout: float) -> Address:
    """
    Raises:
        UserError: no URL, no engine of that name, or no time to answer in.
    """
    check_url(option, url)
    check_engine(engine)
    if not 0 < timeout <= 86400:
        raise UserError(f"timeout is {timeout:g}; it is the seconds that one answer may take, over 0 and at most 86400")
    return Address(url, engine, model, float(timeout))


def _asking(address: Address) -> Decode:
    make_ready(address)

    def decode(prompt_ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        if not getattr(target, "is_served", False):
            raise UserError("an engine elsewhere decodes on no loaded model: `harness run` measures it")
        engine, asked = connected(address), Asked(prompt_ids, params, target)
        answer = engine.ask(asked)
        finish = checked(answer, asked, engine.identity)
        target.keep(answer)
        return Generation(answer.token_ids, finish, 0, answer.first_s, None)

    return decode
