"""The driver's side of a replay over a cluster, without Ray."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from places import TINY

from harness.cluster.request import ClusterRequest
from harness.load.config import model_config
from harness.replay.session import Ready, ReplayRequest
from harness.replay.spread import ReplayDesk


def desk(folder: Path, prompts: Path | None = None) -> ReplayDesk:
    request = ReplayRequest(policies=("eagle2",), out=folder, prompts_dir=prompts)
    return ReplayDesk(Ready(request, model_config(str(TINY)), (), (0.0,), {}, (), {}), ClusterRequest(address="local"))


def test_a_worker_is_given_a_prompts_folder_that_holds_in_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, request, _, _ = pickle.loads(desk(tmp_path, Path("prompts")).setup().work)
    assert request.prompts_dir == tmp_path / "prompts"


def test_it_tells_how_many_conversations_are_replayed_and_how_long_the_others_take(tmp_path: Path) -> None:
    one = desk(tmp_path)
    one.progress.expect(3)
    one.progress.step("the first conversations")
    one.ended(("mt_bench", "81"))
    assert one.progress.line().startswith("replay: 1 of 3 steps, now after mt_bench 81; ") and " left" in one.progress.line()
