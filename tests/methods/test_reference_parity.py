"""Token by token against what the reference implementation did on the embedded target (../shared/golden, where present)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from places import SHARED
from tiny_model import TinyModel

from harness.common.errors import UserError
from harness.load.config import model_config
from methods.base import SamplerParams

GOLDEN = SHARED / "golden"
FREE = SamplerParams(48)  # the reference ran on past end-of-sequence

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference's outputs are not beside the checkout"),
]


@pytest.fixture(scope="module")
def embedded() -> Iterator[TinyModel]:
    """The embedded target in float32, as the reference ran it, with the reference's head."""
    import torch

    from harness.load.model import load

    torch.set_num_threads(1)
    try:
        yield TinyModel(load(model_config("smollm2-135m"), "float32", head=GOLDEN / "head_fit"))
    except UserError as error:
        pytest.skip(f"the embedded target is not to be had: {error}")


def recorded(method: str) -> list[tuple[list[int], dict[str, Any]]]:
    """[(prompt ids, what the reference recorded)]."""
    prompts = {row["id"]: row["input_ids"] for row in read("prompts")}
    return [(prompts[row["id"]], row) for row in read(method)]


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("method", "options"), [("eagle2", {}), ("eagle2", {"stop_early": True}), ("eagle1", {})])
def test_trees_accept_lengths_and_outputs_are_the_references(method: str, options: dict[str, Any], embedded: TinyModel) -> None:
    cases = recorded(method)
    assert len(cases) == 2
    for prompt, reference in cases:
        spy = embedded.spy()
        generation = embedded.decode(method, prompt, FREE, target=spy, **options)
        for number, (tree, step) in enumerate(zip(spy.trees, reference["steps"], strict=False)):
            where = f"{method}, {reference['id']}, step {number}"
            assert tree.tokens == step["tokens"], where
            assert tree.parents == step["parents"], where
            assert tree.depths() == step["depth"], where
            assert tree.ancestors().int().tolist() == step["tree_mask"], where
        assert len(spy.trees) >= len(reference["steps"]) == 4
        assert generation.token_ids == reference["output_ids"]
        assert generation.trace is not None
        accepted, theirs = generation.trace.accepted, reference["accept_lengths"]
        # the reference counts a step's bonus token in the next step: it may have verified once more
        assert accepted == theirs[: len(accepted)] and len(theirs) - len(accepted) <= 1


def test_vanillas_output_is_the_references(embedded: TinyModel) -> None:
    for prompt, reference in recorded("naive")[:1]:  # both prompts are in the outputs above; this is vanilla's own loop
        assert embedded.vanilla(prompt, FREE).token_ids == reference["output_ids"]
