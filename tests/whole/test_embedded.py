"""The embedded target itself, on a machine that has it or can fetch it: every method passes the audit of level quick."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import harness

from harness.common.errors import UserError
from harness.load.config import model_config

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    from harness.load.model import weights_folder

    try:
        weights_folder(model_config("smollm2-135m"))
    except UserError as error:
        pytest.skip(f"the embedded target is not to be had: {error}")


@pytest.mark.timeout(1200)  # every method, in float64, too: minutes on two cores
def test_every_method_passes_the_quick_audit(tmp_path: Path) -> None:
    outcome = harness("verify --level quick --threads 1 --json --out", tmp_path)  # another worker has the other core
    assert outcome.code == 0, outcome.err
    rows = outcome.value
    assert {row["method"] for row in rows if row["passed"] is False} == {"medusa-typical"}  # declares itself inexact
    for layer in ("L1 exact law", "L2 logit replay, float32", "L3 greedy equality, float64", "L4 score test"):
        judged = {row["method"] for row in rows if row["layer"].startswith(layer) and row["passed"]}
        exact = {"vanilla", "sps", "pld", "lookahead", "medusa", "hydra", "eagle1", "eagle2", "eagle2-fr"}
        assert exact <= judged, layer
