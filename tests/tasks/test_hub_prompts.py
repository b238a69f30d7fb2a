"""Prompts of the hub's data sets, where the hub does not answer, answers with a web page, or does not take the token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from command_line import isolate
from hub_stand_in import StandIn, stand_in

import tasks
from harness.common.errors import UserError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with stand_in(monkeypatch) as running:
        yield running


def test_a_hub_that_never_answers_is_asked_once_and_left(hub: StandIn) -> None:
    hub.silent = True
    began = time.monotonic()
    with pytest.raises(UserError, match=r"cannot load openai/gsm8k .* \(no answer in 0.3 s.*; or take --source"):
        tasks.load("gsm8k", source="hub", limit=1)
    assert time.monotonic() - began < 60 * 0.3 and not datasets.config.HF_HUB_OFFLINE  # a multiple of the limit


def test_a_web_page_in_place_of_a_data_set_is_named(hub: StandIn) -> None:
    hub.refusal = (200, {"Content-Type": "text/html"})
    with pytest.raises(UserError, match=r"cannot load openai/gsm8k .* \(a web page came in place of it"):
        tasks.load("gsm8k", source="hub", limit=1)


def test_an_expired_token_is_not_called_a_missing_data_set(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.refusal = (401, {"X-Error-Message": 'User Access Token "mine" is expired'})
    with pytest.raises(UserError, match=r'does not take the token in use \(User Access Token "mine" is expired\)') as told:
        tasks.load("gsm8k", source="hub", limit=1)
    assert "hf_x" not in str(told.value)


def test_what_is_in_the_cache_of_data_sets_needs_no_hub(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.silent = True
    was_offline = []

    def load_dataset(*_: object, **__: object) -> list[dict[str, str]]:
        was_offline.append(datasets.config.HF_HUB_OFFLINE)
        return [{"question": "How many?", "answer": "2"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert tasks.load("gsm8k", source="hub", limit=1).prompts[0].turns == ("How many?",)
    assert was_offline == [True] and not datasets.config.HF_HUB_OFFLINE
