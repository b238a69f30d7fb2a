"""`harness costs`: what is measured of a model that is here, and of random weights of any sizes, whole and scaled."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import harness, isolate, refused
from tiny_model import shared_tiny_model

from harness.common.errors import UserError
from harness.costs import measure, session
from harness.costs.measure import OTHERS, Plan, _Samples, inside, n_levels
from harness.costs.random_weights import VICUNA_68M, layers_that_fit, published, random_target
from harness.costs.table import read
from harness.load.architecture import Architecture
from harness.load.kinds import PUBLISHED_HEADS, PUBLISHED_LM
from methods.base import SamplerParams

SIZES = Architecture(
    hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=512
)
FEW = {"rows": (1, 8), "levels": (1, 4), "observed": (1, 3), "rounds": 3}
YAML = """
name: sized
title: of some sizes
weights: {hub: nobody/nothing, revision: main, gated: false, official: true}
licence: none
architecture: {hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2,
               vocab_size: 512}
template: plain
system: none
dtype: float32
context_length: 1024
stop_ids: [2]
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def test_every_part_of_a_model_that_is_here_is_measured_and_the_target_is_as_it_was() -> None:
    tiny = shared_tiny_model("float32")
    params = SamplerParams(8)
    before = tiny.vanilla(tiny.prompts[0], params)
    found = inside(tiny.loaded.target, {"eagle": tiny.loaded.drafter}, 48, Plan((48,), 2, 2, **FEW))
    assert set(found.verify) == {1, 8} and set(found.level or {}) == {1, 4} and set(found.observe or {}) == {1, 3}
    figures = [found.plain, *found.verify.values(), *(found.level or {}).values(), *(found.observe or {}).values(), found.prefill]
    assert all(0 < f.low <= f.ms <= f.high for f in figures) and found.root and found.head_prefill
    assert tiny.decode("vanilla", tiny.prompts[0], params).token_ids == before.token_ids


def test_without_a_head_the_target_alone_is_measured() -> None:
    tiny = shared_tiny_model("float32")
    found = inside(tiny.loaded.target, {}, 16, Plan((16,), 2, 2, **FEW))
    assert found.level is found.observe is found.root is found.head_prefill is None and found.plain.ms > 0


def test_layers_that_are_not_there_cost_what_half_of_those_that_are_add() -> None:
    samples = _Samples(Plan((1,), layers_measured=4, layers=32))
    samples.whole = {"plain": [10.0, 12.0, 11.0], "level": [1.0, 2.0, 3.0]}
    samples.half = {"plain": [6.0, 8.0, 7.0]}  # 2 layers less: 2 ms a layer
    found = samples.figure("plain")
    assert found.ms == 11 + 28 * 2
    # each median is known to within 1; the whole counts 15 times, the half 14 times
    assert found.high - found.ms == pytest.approx((15**2 + 14**2) ** 0.5) == found.ms - found.low
    assert samples.figure("level") == (2, 1, 3)  # the head's: all of it is there
    samples.whole["plain"] = [5.0] * 3  # less than the half: noise, and no layer costs less than nothing
    assert samples.figure("plain").ms == 5


def test_every_kind_of_drafter_is_measured_by_level_and_takes_back_what_it_observed() -> None:
    tiny = shared_tiny_model("float32")
    target = tiny.loaded.target
    made = {kind: tiny.loaded.drafter_of(kind) for kind in OTHERS}
    plan = Plan((48,), 2, 2, **FEW)
    found = inside(target, {"eagle": tiny.loaded.drafter, **made}, 48, plan)
    assert set(found.drafters) == set(made)
    for kind, d in found.drafters.items():
        assert len(d.levels) == n_levels(made[kind]) and d.root.ms > 0 and set(d.observe) == {1, 3}
        assert [set(level) for level in d.levels] == [set(plan.rows_of(kind))] * len(d.levels)
    assert [len(found.drafters[kind].levels) for kind in made] == [1, 3, 3, 1]
    assert target.aux_layers == () and plan.rows_of("eagle3") == plan.levels  # a plain step was timed without other states
    assert found.drafters["hydra"].levels[0][18].ms > 0 and found.drafters["lm"].prefill.ms > 0


@pytest.mark.parametrize("layers", [2, 4])
def test_random_weights_have_the_sizes_asked_for_and_decode(layers: int) -> None:
    stand = random_target(SIZES, "float32", 256, torch.device("cpu"), layers)
    c = stand.target.model.config
    assert (c.num_hidden_layers, c.hidden_size, c.vocab_size, stand.of) == (layers, 64, 512, 4)
    features, logits = stand.target.prefill([1, 2, 3], 8)
    assert features.shape == (3, 64) and bool(logits.isfinite().all()) and float(logits.std()) > 0
    head = stand.drafters["eagle"]
    head.start(64, None, 1)
    head.observe([2, 3, 4], features)
    assert bool(head.root_logits().isfinite().all())
    found = inside(stand.target, stand.drafters, 16, Plan((16,), layers, 4, **FEW))
    assert found.plain.ms > 0 and len(stand.target.body.layers) == layers


def test_drafters_whose_published_sizes_are_known_are_made_with_random_weights() -> None:
    assert published(("hydra", "lm", "medusa"), SIZES) == ("medusa",)  # another vocabulary than the draft LM's
    assert published(("lm", "medusa"), SIZES.model_copy(update={"vocab_size": 32000})) == ("lm", "medusa")
    assert round(VICUNA_68M.n_parameters / 1e6) == PUBLISHED_LM / 1e6 == 68
    stand = random_target(SIZES, "float32", 256, torch.device("cpu"), 2, ("medusa",))
    found = inside(stand.target, stand.drafters, 16, Plan((16,), 2, 4, **FEW)).drafters["medusa"]
    assert len(found.levels) == PUBLISHED_HEADS - 1 and all(level[1].ms > 0 for level in found.levels) and found.root.ms > 0
    none, with_them = (
        layers_that_fit(SIZES, "float32", 128, 2 * 10**6, on_cpu=False, kinds=kinds) for kinds in ((), ("medusa",))
    )
    assert none > with_them


def test_costs_of_which_a_part_was_replayed_and_a_part_launched_are_measured_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU's driver may refuse a graph while what is outside both models is measured: after that all is eager."""
    tiny, measured, made = shared_tiny_model("float32"), session.outside, list[str]()
    monkeypatch.setattr(tiny.loaded.target, "mode", "graphs", raising=False)

    def refusing(*args: Any) -> Any:
        made.append(tiny.loaded.target.mode)
        tiny.loaded.target.mode = "eager"
        return measured(*args)

    monkeypatch.setattr(session, "outside", refusing)
    wanted = session.Wanted(contexts=(128,), rounds=1)
    table = session.measured_of(tiny.loaded, 1, wanted, ["eagle"])
    assert made == ["graphs", "eager"] and table.machine.mode == "eager"
    assert "measuring again: some of it was replayed as graphs" in capsys.readouterr().err


def test_as_many_layers_are_made_as_fit_and_fewer_than_two_are_refused() -> None:
    found: list[int] = []
    for room in range(0, 10**7, 10**5):
        with suppress(UserError):
            found.append(layers_that_fit(SIZES, "float32", 128, room, on_cpu=True))
    assert found == sorted(found) and set(found) == {2, 3, 4}
    with pytest.raises(UserError, match="2 of its layers with the embedding, LM head and drafters take 0.0 GB in float32"):
        layers_that_fit(SIZES, "float32", 128, 1000, on_cpu=True)


def test_the_command_measures_sizes_without_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PROBE_TOKENS", 4)
    model = tmp_path / "sized.yaml"
    model.write_text(YAML)
    words = f"--random-weights --layers 2 --context 32 --dtype float32 --threads 1 --rounds 3 --out {tmp_path / 'costs'} --json"
    done = harness("costs", "--model", str(model), *words.split())
    assert done.code == 0, done.err
    (file,) = (tmp_path / "costs").rglob("*.json")
    table = read(file)
    assert (table.model, table.layers_measured, table.is_scaled, table.random_weights) == ("sized", 2, True, True)
    assert [c.tokens for c in table.contexts] == [32] and table.has("eagle") and table.machine.threads == 1
    assert "2 of 4 layers were measured" in done.out and "The weights are random" in done.out
    rows = json.loads(done.out.splitlines()[-1])
    assert {row["part"] for row in rows} == {"plain", "verify", "prefill", "root", "head_prefill", "level", "observe"}
    assert file.name == "sized.layers-2.json" and file.parent.name.endswith(
        f"1-threads-float32-{session.slug(table.machine.engine)}"
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--random-weights --layers 0", "--layers is 0; it must be at least 1"),
        ("--random-weights --layers 1", "it takes at least 2, whose difference tells what the others cost"),
        ("--random-weights --layers 5", "--layers is 5; sized has 4"),
        ("--layers 2", "--layers is of random weights"),
        ("--random-weights --context 7", "--context is 7; it must be at least 8"),
        ("--random-weights --context 600", "--context 600: none leaves 512 of the model's 1024 tokens for trees"),
        ("--random-weights --frequent 513", "--frequent is 513; sized has 512 tokens"),
        ("--random-weights --rounds 0", "--rounds is 0"),
        ("--random-weights --drafter eagle", "unknown drafter 'eagle'"),
        ("--random-weights --dtype int8", "int8"),
    ],
)
def test_what_cannot_be_measured_is_said(words: str, why: str, tmp_path: Path) -> None:
    model = tmp_path / "sized.yaml"
    model.write_text(YAML)
    refused(harness("costs", "--model", str(model), *words.split(), "--out", str(tmp_path / "costs")), why)
    assert not (tmp_path / "costs").exists()


def test_a_model_without_sizes_and_one_without_weights_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "sized.yaml"
    model.write_text(YAML[: YAML.index("architecture")] + YAML[YAML.index("template") :])
    refused(harness("costs", "--model", str(model), "--random-weights"), "give its YAML an `architecture:` block")


def test_too_little_memory_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "free_bytes", lambda where: 10**9)
    refused(harness("costs", "--model", "vicuna-7b", "--random-weights"), "GB are free here")
