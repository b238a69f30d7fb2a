"""Training Medusa's and Hydra's heads and draft LMs: a level is what drafting does, and one work folder serves all kinds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_up_training import HIDDEN, SETTINGS, VOCAB, made_up, same, true_batch
from places import TINY
from tiny_model import TinyModel, shared_tiny_model
from torch import Tensor, nn
from transformers import LlamaConfig

from harness.common.errors import UserError
from harness.load.config import model_config
from harness.load.drafters import read_state
from harness.load.kinds import drafter_kind
from harness.load.model import load
from harness.train import heads, pipeline
from harness.train.data import read_shards
from harness.train.loop import train
from harness.train.pipeline import train_drafter
from harness.train.request import TrainRequest, training_settings
from harness.train.settings import TrainSettings
from harness.train.texts import Lengths
from harness.train.trainers import TRAINERS
from methods.base import SamplerParams
from methods.engine.draft_lm import NarrowConfig, NarrowLM
from methods.engine.eagle3 import Eagle3Head
from methods.engine.heads import HeadsConfig, ResidualHeads

MODEL = LlamaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=2, rms_norm_eps=1e-5)
OTHERS = ("medusa", "hydra", "sps", "eagle3")


def settings_of(kind: str) -> TrainSettings:
    small = {k: getattr(SETTINGS, k) for k in ("tokens", "batch_tokens", "learning_rate", "warmup_steps", "frequent_rows",
                                               "max_length", "held_out", "seed")}  # fmt: skip
    return replace(TRAINERS[kind].defaults, **small, width=8, layers=1, draft_vocab=25)


def untrained(kind: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = TRAINERS[kind].new(MODEL, settings_of(kind))
    return module


@torch.inference_mode()
@pytest.mark.parametrize("kind", OTHERS)
def test_a_level_of_the_trainer_is_what_drafting_computes_there(kind: str) -> None:
    tiny: TinyModel = shared_tiny_model("float32")
    state, _ = read_state(TINY.parent / kind, {})
    values = json.loads((TINY.parent / kind / "config.json").read_text())
    drafter = tiny.loaded.drafter_of("lm" if kind == "sps" else kind)
    if kind == "sps":
        module: nn.Module = NarrowLM(NarrowConfig(**{k: values[k] for k in NarrowConfig.__dataclass_fields__}))
    elif kind == "eagle3":
        module = Eagle3Head(drafter.head.config)
    else:
        module = ResidualHeads(HeadsConfig(**{k: values[k] for k in HeadsConfig.__dataclass_fields__}))
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    target, batch, n, depth = tiny.loaded.target, true_batch(tiny, 24), 24, 4
    given = batch.aux if kind == "eagle3" else batch.features
    lm_head = module.lm_head if kind == "eagle3" else target.lm_head
    assert given is not None
    levels = list(TRAINERS[kind].predicted_features(module, target.embedding, batch, depth))
    checked = [0] * depth
    for row in range(2):
        ids = batch.ids[row].tolist()
        for last in range(0, n - depth, 3):  # the last pair whose feature is the target's
            drafter.start(64, None, ids[0])
            drafter.observe(ids[1 : last + 2], given[row, : last + 1])
            logits = [drafter.root_logits()[0]]
            for d in range(1, depth):
                sees = torch.ones(1, d, dtype=torch.bool)
                logits.append(drafter.expand(torch.tensor(ids[last + d + 1 : last + d + 2]), torch.tensor([d - 2]), sees)[0])
            for s, (out, valid) in enumerate(levels):
                pairs = range(last, last + s + 1)
                assert valid[row, last + s] == all(batch.trained[row, i] for i in pairs)
                if valid[row, last + s]:
                    checked[s] += 1
                    wanted: Tensor = lm_head(out[row, last + s])
                    assert (logits[s] - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert min(checked) >= 4


def trained(kind: str, folder: Path, settings: TrainSettings) -> tuple[nn.Module, list[dict]]:
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    embedding, lm_head = (torch.randn(VOCAB, HIDDEN, generator=rng).to(torch.bfloat16) for _ in range(2))
    items, module = made_up(30), untrained(kind)
    return module, train(
        TRAINERS[kind], module, embedding, lm_head, items[3:], items[:3], settings, folder, say=lambda text: None
    )


@pytest.mark.parametrize("kind", OTHERS)
def test_training_learns_resumes_where_it_was_and_is_deterministic(kind: str, tmp_path: Path) -> None:
    settings = settings_of(kind)
    one, curve = trained(kind, tmp_path / "one", settings)
    again, same_curve = trained(kind, tmp_path / "one", settings)  # from its checkpoint: nothing left to do
    two, _ = trained(kind, tmp_path / "two", settings)
    assert same(one.state_dict(), again.state_dict()) and same(one.state_dict(), two.state_dict()) and same_curve == curve
    longer = trained(kind, tmp_path / "longer", replace(settings, tokens=6000))[1]
    assert longer[-1]["loss"] < curve[-1]["loss"]
    assert set(curve[-1]) >= {"step", "tokens", "seconds", "loss", "top1", "top10", "chain_tau"}


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_heads_begin_as_the_targets_next_token_and_are_shipped_for_plain_inputs(kind: str) -> None:
    module = TRAINERS[kind].new(MODEL, settings_of("hydra"))
    embedding = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    heads.initialise(module, embedding, made_up(8), SETTINGS)
    feature = torch.randn(3, HIDDEN)
    for k, head in enumerate(module.heads):
        x = torch.randn(3, module.config.inputs(k))
        assert torch.equal(head(feature, x), feature)
        torch.nn.init.normal_(head.down.weight)
    shipped = heads.shipped(module)
    assert shipped.state_dict().keys() == ResidualHeads(module.config).state_dict().keys()
    for k, (ours, theirs) in enumerate(zip(module.heads, shipped.heads, strict=True)):
        x = 3 * torch.randn(3, module.config.inputs(k))
        assert torch.allclose(ours(feature, x), theirs(feature, x), rtol=1e-3, atol=1e-3)


def begun_heads(n_items: int) -> tuple[Tensor, Tensor, list[Any], Any]:
    """An embedding, an LM head, made-up answers, and Medusa heads initialised on them."""
    rng = torch.Generator().manual_seed(0)
    embedding, lm_head = (torch.randn(VOCAB, HIDDEN, generator=rng).to(torch.bfloat16) for _ in range(2))
    items, module = made_up(n_items), untrained("medusa")
    heads.initialise(module, embedding, items, SETTINGS)
    return embedding, lm_head, items, module


@torch.no_grad()
def test_held_out_accuracies_are_counts_by_head_and_rank() -> None:
    embedding, lm_head, items, module = begun_heads(5)
    found = heads.held_out_accuracies(module, embedding, lm_head, items)
    assert len(found) == 4 and {len(row) for row in found} == {heads.RANKS}
    hits = [[0] * heads.RANKS for _ in range(4)]
    pairs = [0] * 4
    for c in items:  # untrained heads predict the target's own next token again
        features = torch.from_numpy(c.features.copy().view("int16")).view(torch.bfloat16)
        best = F.linear(features, lm_head).topk(heads.RANKS).indices
        for k in range(4):
            for i in range(c.n_prompt - 1, len(c.ids) - 1 - k):
                pairs[k] += 1
                for rank in range(heads.RANKS):
                    hits[k][rank] += int(best[i, rank] == best[i + 1 + k, 0])
    for k in range(4):
        assert found[k] == pytest.approx([h / pairs[k] for h in hits[k]], abs=0.03)  # ties of bf16 logits


@torch.no_grad()
def test_held_out_accuracies_are_of_greedy_answers_where_there_are_any() -> None:
    embedding, lm_head, items, module = begun_heads(12)

    def of(some: list[Any]) -> list[list[float]]:
        return heads.held_out_accuracies(module, embedding, lm_head, some)

    greedy = [replace(item, greedy=i % 3 == 0) for i, item in enumerate(items)]
    assert of(greedy) == of(items[::3]) != of(items)


def test_a_setting_that_means_nothing_to_a_kind_is_refused() -> None:
    with pytest.raises(UserError, match="unknown training setting 'width' of eagle; known: tokens"):
        training_settings(("width=64",), "eagle")
    with pytest.raises(UserError, match="unknown training setting 'unroll' of sps"):
        training_settings(("unroll=3",), "sps")
    with pytest.raises(UserError, match="unroll is 0; it must be at least 1"):
        training_settings(("unroll=0",), "medusa")
    for change, said in (
        ("cooldown=0", "cooldown is 0.0; it must be over 0"),
        ("warmup_steps=0", "warmup_steps is 0; it must be at least 1"),
        ("held_out=0", "held_out is 0; it must be at least 1"),
        ("ce_share=0", "ce_share is 0.0; it must be over 0 and at most 1"),
        ("prompt_share=1.5", "prompt_share is 1.5; it must be from 0 to 1"),
        ("intermediate_size=-8", "intermediate_size is -8; it must be 0 or more"),
        ("betas=0.9", r"betas is \(0.9,\); it must be two numbers"),
        ("seed=-1", "seed is -1; it must be 0 or more"),
        ("learning_rate=nan", "learning_rate is nan; it must be over 0"),
        ("ce_weight=0", "ce_weight is 0.0: there would be no loss"),
    ):
        with pytest.raises(UserError, match=said):
            training_settings((change,), "medusa")
    with pytest.raises(UserError, match="width 100"):
        TRAINERS["sps"].new(MODEL, training_settings(("width=100",), "sps"))
    assert training_settings(("width=128",), "sps", tokens=7).tokens == 7


def test_what_cannot_be_asked_of_a_training_is_refused_at_once(tmp_path: Path) -> None:
    for asked, said in (
        ({"answer_tokens": 0}, "--answer-tokens is 0; it must be at least 1"),
        ({"text_tokens": -1}, "--text-tokens is -1; it must be at least 0"),
        ({"tokens": -1}, "--tokens is -1; it must be at least 0"),
        ({"threads": 0}, "--threads is 0; it must be at least 1"),
        ({"kind": "medsua"}, "unknown kind of drafter to train 'medsua'; did you mean 'medusa'"),
        ({"seed": -1}, "--seed is -1; it must be at least 0"),
        ({"changes": ("unroll",)}, "--set takes KEY=VALUE, not 'unroll'"),
    ):
        with pytest.raises(UserError, match=said):
            TrainRequest(**{"kind": "medusa", "model": str(TINY), "out": tmp_path} | asked)  # type: ignore[arg-type]
    request = TrainRequest("hydra", "tiny", tmp_path, tokens=7, seed=3, changes=("unroll=2",))
    assert (request.settings.tokens, request.settings.seed, request.settings.unroll) == (7, 3, 2)


def test_sizes_that_are_none_are_refused_before_any_prompt_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "evaluation_prompts", lambda: pytest.fail("the data was begun"))
    with pytest.raises(UserError, match="width 100"):
        train_drafter(
            TrainRequest("sps", str(TINY), tmp_path / "out", tmp_path, 9, 0, tokens=9, changes=("width=100",), threads=1)
        )


def test_one_work_folder_trains_every_kind_on_the_same_data_and_what_comes_out_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of `harness train`, but for the download: only the prompts are made up."""
    texts = [f"How does thing number {i} of all things in a house work, and who made it?" for i in range(120)]
    talks = [{"id": str(i), "conversations": [{"from": "human", "value": text}]} for i, text in enumerate(texts)]
    monkeypatch.setattr(pipeline.sharegpt, "conversations", lambda: iter(talks))
    work, made = tmp_path / "work", {}
    changes = ("batch_tokens=512", "held_out=4", "warmup_steps=2", "frequent_rows=384")
    for kind in TRAINERS:
        own = (*changes, "width=16", "layers=1") if kind == "sps" else (*changes, "intermediate_size=16", "unroll=2")
        if kind == "eagle3":
            own = (*(change for change in own if "frequent" not in change), "draft_vocab=60", "aux_layers=0,1,2")
        train_drafter(TrainRequest(kind, str(TINY), tmp_path / kind, work, 400, 0, tokens=1500, changes=own, threads=1))
        made[kind] = json.loads((tmp_path / kind / "training.json").read_text())
        assert (tmp_path / kind / "curve.jsonl").read_text() and (tmp_path / kind / "training.png").exists()
        shards = {f: f.stat().st_mtime_ns for f in (work / "few_answers").glob("*.npz")}
        assert shards and shards == made.setdefault("shards", shards)  # made once
    seen, held = ([tuple(c.ids[: c.n_prompt]) for c in read_shards(work / part, 64)] for part in ("few_answers", "held_out"))
    assert 0 < len(held) < 20 and set(seen).isdisjoint(held) and len(set(seen)) == len(seen)
    assert set(made) == {*TRAINERS, "shards"} and len({made[kind]["distinct_tokens"] for kind in TRAINERS}) == 1
    assert (work / "checkpoint.pt").exists() and all((work / kind / "checkpoint.pt").exists() for kind in OTHERS)
    assert made["sps"]["width"] == 16 and "width" not in made["hydra"] and made["hydra"]["unroll"] == 2
    drafters = {trainer.kind: command for command, trainer in TRAINERS.items()}
    config = model_config(str(TINY)).model_copy(
        update={"head": None, "drafters": {k: str(tmp_path / v) for k, v in drafters.items()}}
    )
    tiny = TinyModel(load(config, "float64", drafters=list(drafters)))
    params = SamplerParams(16)
    assert {kind: drafter_kind(tmp_path / command) for kind, command in drafters.items()} == {kind: kind for kind in drafters}
    for method, options in (("medusa", {"tree": "chosen"}), ("hydra", {"tree": "0 1 00 01"}), ("sps", {}), ("eagle2", {}),
                            ("eagle2-fr", {"frequent": 9}), ("eagle3", {})):  # fmt: skip
        assert (
            tiny.decode(method, tiny.prompts[0], params, **options).token_ids == tiny.vanilla(tiny.prompts[0], params).token_ids
        )


def test_few_tokens_take_few_prompts_and_whole_shards_hold_what_they_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for 200 tokens and then for more than FEW, the whole shards are those of a request that begins with them."""
    tiny = TinyModel(load(model_config(str(TINY)), "bfloat16", drafters=()))
    talks = [{"id": str(i), "conversations": [{"from": "human", "value": f"How does thing number {i} in a house work?"}]}
             for i in range(150)]  # fmt: skip
    dialogues = pipeline.sharegpt.split(talks)
    monkeypatch.setattr(pipeline, "FEW", 300)

    def made(work: Path, n_tokens: int) -> list[tuple[int, ...]]:
        request = TrainRequest("eagle", str(TINY), tmp_path / "out", work, n_tokens, 0, tokens=0, threads=1)
        texts = pipeline.texts_of(tiny.loaded, dialogues, [], request, work, Lengths(700, 16))
        pipeline.make_answers(tiny.loaded, texts, 0, 64, keep_features=True)
        return [tuple(c.ids) for c in pipeline.training_data(texts, 64, None)[0]]

    few = made(tmp_path / "work", 200)
    assert len(few) == pipeline.FEW_PROMPTS
    whole = made(tmp_path / "work", 301)
    assert len(whole) > 100 and whole == made(tmp_path / "other", 301)
    assert made(tmp_path / "work", 200) == whole  # what is there is used
