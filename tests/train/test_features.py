"""Features kept on the disk and features computed for each batch: the same training, and which of the two is taken."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up_training import same
from places import TINY
from tiny_model import shared_tiny_model
from torch import Tensor

from harness.common.errors import UserError
from harness.load.config import model_config
from harness.train import loop, loss, pipeline
from harness.train.data import Conversation, add_states, make_text_shards, read_shards
from harness.train.features import Part, keeps_features, tokens_to_keep
from harness.train.generate import FeaturesOf, answers, features_of
from harness.train.held_out import calibration, held_out_acceptance
from harness.train.loop import train
from harness.train.pipeline import train_drafter
from harness.train.request import TrainRequest
from harness.train.settings import TrainSettings
from harness.train.texts import lengths_of
from harness.train.trainers import TRAINERS

SETTINGS = TrainSettings(tokens=1500, batch_tokens=256, warmup_steps=2, frequent_rows=384, held_out=3, intermediate_size=16)


def texts(n: int = 24) -> list[tuple[list[int], int]]:
    """(ids, tokens of the prompt), of lengths that differ."""
    prompts = shared_tiny_model("float64").prompts
    return [((prompts[i % len(prompts)] * 2)[i : i + 30 + 7 * (i % 9)], 8 + i % 11) for i in range(n)]


def llama(dtype: torch.dtype) -> object:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=dtype).eval()


AUX = (0, 1, 2)


def both(dtype: torch.dtype, folder: Path) -> tuple[object, list[Conversation], list[Conversation]]:
    """(the target, its texts with features kept, the same with features that are computed)."""
    model = llama(dtype)
    make_text_shards(folder, model, texts(), n_tokens=10**6, say=lambda text: None)  # type: ignore[arg-type]
    add_states(folder, model, AUX, say=lambda text: None)  # type: ignore[arg-type]
    kept = read_shards(folder, 64, aux_layers=AUX)
    return model, kept, read_shards(folder, 64, features_of(model, AUX))  # type: ignore[arg-type]


def head_of(
    kind: str, model: object, items: list[Conversation], folder: Path, settings: TrainSettings, say=lambda text: None  # noqa: ANN001
) -> tuple[dict[str, Tensor], list[dict]]:  # fmt: skip
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = TRAINERS[kind]
    head = trainer.new(model.config, settings)  # type: ignore[attr-defined]
    embedding, lm_head = (w.detach().to(torch.bfloat16) for w in (model.model.embed_tokens.weight, model.lm_head.weight))  # type: ignore[attr-defined]
    curve = train(trainer, head, embedding, lm_head, items[3:], items[:3], settings, folder, say=say)
    return head.state_dict(), curve


def settings_of(kind: str) -> TrainSettings:
    same_for_all = ("tokens", "batch_tokens", "warmup_steps", "frequent_rows", "held_out", "intermediate_size")
    mine = {name: getattr(SETTINGS, name) for name in same_for_all}
    return replace(TRAINERS[kind].defaults, **mine, unroll=min(TRAINERS[kind].defaults.unroll, 2), width=16, layers=1,
                   draft_vocab=200, aux_layers=AUX)  # fmt: skip


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_head_is_the_same_whether_features_are_kept_or_computed(kind: str, tmp_path: Path) -> None:
    """Bit for bit where the target runs in float64: batches change its sums, but not what is left of them in bf16."""
    model, kept, computed = both(torch.float64, tmp_path / "texts")
    heads = [head_of(kind, model, items, tmp_path / name, settings_of(kind)) for name, items in (("a", kept), ("b", computed))]
    assert same(heads[0][0], heads[1][0])
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in heads[0][1]] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in heads[1][1]
    ]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_in_the_dtypes_of_targets_features_differ_by_roundings_alone(dtype: torch.dtype, most: float, tmp_path: Path) -> None:
    model, kept, computed = both(dtype, tmp_path / "texts")
    (one, curve), (two, other) = (head_of("eagle", model, x, tmp_path / n, SETTINGS) for n, x in (("a", kept), ("b", computed)))
    apart = max(float((one[k] - two[k]).norm() / one[k].norm().clamp_min(1e-9)) for k in one if "bias" not in k)
    assert apart < most and other[-1]["loss"] == pytest.approx(curve[-1]["loss"], rel=most)


def test_a_training_that_was_stopped_goes_on_with_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept, computed = both(torch.float64, tmp_path / "texts")
    whole, _ = head_of("eagle", model, kept, tmp_path / "whole", SETTINGS)
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(loop, "CHECK_EVERY", 300)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    said: list[str] = []

    def dying(text: str) -> None:
        said.append(text)
        if text.startswith("{"):
            raise KeyboardInterrupt

    for items in (kept, computed):
        with pytest.raises(KeyboardInterrupt):
            head_of("eagle", model, items, tmp_path / "parts", SETTINGS, dying)
    parts, _ = head_of("eagle", model, kept, tmp_path / "parts", SETTINGS, said.append)
    assert sum(text.startswith("resuming at step") for text in said) == 2 and same(whole, parts)


def test_a_batch_of_computed_features_takes_one_forward_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.train import generate

    monkeypatch.setattr(generate, "FORWARD_ROWS", 100)
    model, sizes = llama(torch.float64), list[int]()
    compute = features_of(model)  # type: ignore[arg-type]
    monkeypatch.setattr(generate.BatchedLlama, "_run", _counting(generate.BatchedLlama._run, sizes))
    ids = [np.array(text, dtype=np.int32) for text, _ in texts(9)]
    made = compute(ids)
    assert sum(sizes) == sum(map(len, ids)) and max(sizes) <= 100 and len(sizes) < 9
    for text, features in zip(ids, made, strict=True):
        exact = model.model(torch.from_numpy(text.astype(np.int64))[None]).last_hidden_state[0]  # type: ignore[attr-defined]
        assert F.cosine_similarity(features.double(), exact.double(), dim=-1).min() > 0.9999
        assert features.dtype == torch.bfloat16 and not features.requires_grad


def _counting(run, sizes: list[int]):  # noqa: ANN001, ANN202
    def counted(self, ids, *rest):  # noqa: ANN001, ANN002, ANN202
        sizes.append(len(ids))
        return run(self, ids, *rest)

    return counted


# ---- which of the two ----

Usage = namedtuple("Usage", "total used free")


def test_the_room_on_the_disk_decides_and_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def of(asked: str, n_tokens: int, free: int) -> bool:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
        return keeps_features(asked, n_tokens, 4096, tmp_path, said.append)

    assert of("auto", 10**6, 11 * 10**9) and not of("auto", 10**6, 10 * 10**9)  # 8.2 GB, of 80 % of it
    assert of("keep", 10**6, 9 * 10**9) and not of("recompute", 10**6, 10**12) and of("auto", 0, 0)
    assert said[0] == f"features: kept on the disk: 1,000,000 tokens take about 8.2 GB, and 11.0 GB are free in {tmp_path}"
    assert said[1].startswith(
        "features: computed again for each batch, not kept: 1,000,000 tokens take about 8.2 GB, and 10.0 GB"
    )
    assert len(said) == 5 and said[-1] == "features: kept on the disk: all are there"
    with pytest.raises(
        UserError, match=r"^--features keep: 1,000,000 tokens take about 8.2 GB, and 8.0 GB are free in .*recompute"
    ):
        of("keep", 10**6, 8 * 10**9)
    with pytest.raises(UserError, match="unknown choice of --features 'kept'; did you mean 'keep'"):
        TrainRequest("eagle", "tiny", tmp_path, features="kept")


def test_the_tokens_to_keep_are_those_of_shards_that_lack_features_and_of_shards_to_come(tmp_path: Path) -> None:
    given = texts(10)
    part = Part(tmp_path, [(n, len(ids) - n) for ids, n in given], 10**6, per_shard=4)
    assert tokens_to_keep(part) == sum(len(ids) for ids, _ in given)  # all are to come
    of_first = sum(len(ids) - n for ids, n in given[:4])
    assert tokens_to_keep(replace(part, n_tokens=of_first)) == sum(len(ids) for ids, _ in given[:4])
    make_text_shards(tmp_path, llama(torch.float64), given, n_tokens=of_first + 1, shard_texts=4, say=lambda text: None)  # type: ignore[arg-type]
    assert tokens_to_keep(part) == sum(len(ids) for ids, _ in given[8:])
    (tmp_path / "shard-00001.features").unlink()
    assert tokens_to_keep(part) == sum(len(ids) for ids, _ in given[4:])
    assert tokens_to_keep(replace(part, n_tokens=1)) == sum(len(ids) for ids, _ in given[4:8]), "what is there is completed"


@pytest.mark.slow
def test_a_work_folder_serves_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole of `harness train`: without features on the disk, then with them, then without them again."""
    talks = [{"id": str(i), "conversations": [{"from": "human", "value": f"How does thing number {i} in a house work?"},
                                              {"from": "gpt", "value": f"Thing number {i} works by itself, as all of them do."}]}
             for i in range(120)]  # fmt: skip
    monkeypatch.setattr(pipeline.sharegpt, "conversations", lambda: iter(talks))
    changes = ("batch_tokens=512", "held_out=4", "warmup_steps=2", "frequent_rows=384", "intermediate_size=16")
    work, weights = tmp_path / "work", list[bytes]()
    for features in ("recompute", "keep", "recompute"):
        out = tmp_path / f"{len(weights)}"
        (work / "checkpoint.pt").unlink(missing_ok=True)
        train_drafter(TrainRequest("eagle", str(TINY), out, work, 400, 300, 1500, changes, threads=1, features=features))
        weights.append((out / "model.safetensors").read_bytes())
        kept = {f.parent.name for f in work.rglob("*.features")}
        assert kept == (set() if len(weights) == 1 else {"held_out", "few_answers", "texts"})
        settings = json.loads((out / "training.json").read_text())
        assert settings["text_tokens"] == 300 and settings["max_new_tokens"] == 256
    assert weights[0] == weights[2]
    assert capsys.readouterr().err.count("features: computed again for each batch, as asked for") == 2


def test_a_gpu_that_only_emulates_bf16_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = SimpleNamespace(device=torch.device("cuda"), devices=(torch.device("cuda"),))
    monkeypatch.setattr(pipeline, "load", lambda *args, **named: SimpleNamespace(target=target))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UserError, match="^Tesla T4 has no bfloat16, which drafters are trained in$"):
        train_drafter(TrainRequest("eagle", str(TINY), tmp_path / "out", tmp_path / "work", threads=1))


@torch.no_grad()
def test_what_is_told_of_held_out_answers_does_not_depend_on_how_many_positions_are_looked_at_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept, _ = both(torch.float64, tmp_path / "texts")
    embedding, lm_head = (w.detach().to(torch.bfloat16) for w in (model.model.embed_tokens.weight, model.lm_head.weight))  # type: ignore[attr-defined]
    found = []
    for rows in (10**6, 7):
        monkeypatch.setattr(loss, "LOSS_ROWS", rows)
        made: list[object] = []
        for kind in ("eagle", "medusa", "eagle3"):
            torch.manual_seed(0)
            head = TRAINERS[kind].new(model.config, settings_of(kind))  # type: ignore[attr-defined]
            TRAINERS[kind].initialise(head, embedding, kept, settings_of(kind))
            judged = (TRAINERS[kind], head, embedding, lm_head, kept[:5])
            made += [held_out_acceptance(*judged, depth=2), calibration(*judged, depth=2)]
            made.append(TRAINERS[kind].figures(*judged[1:]))
        found.append(made)
    seen = [len(logits) for _, logits in loss.logits_of(torch.zeros(30, 64), lm_head)]
    assert seen == [7, 7, 7, 7, 2] and found[0] == found[1]


# ---- lengths ----


def test_answers_are_as_long_as_the_models_evaluation_has_them() -> None:
    for model, most in (("vicuna-7b", (1536, 512)), ("llama3-instruct-8b", (1536, 512)), ("smollm2-135m", (1536, 256))):
        lengths = lengths_of(model_config(model))
        assert (lengths.prompt, lengths.answer) == most and sum(most) <= TrainSettings().max_length
    assert lengths_of(model_config("vicuna-7b"), 2000).prompt == 48
    with pytest.raises(
        UserError, match="--max-new-tokens 2048 leaves no room for a prompt: vicuna-7b has a context of 2048 tokens"
    ):
        lengths_of(model_config("vicuna-7b"), 2048)
    small = model_config("vicuna-7b").model_copy(update={"context_length": 300})
    assert (lengths_of(small).prompt, lengths_of(small).answer) == (150, 150)


def test_an_answer_of_512_tokens_has_its_features_to_the_end() -> None:
    prompt, model = shared_tiny_model("float64").prompts[0][:30], llama(torch.float64)
    (made,) = answers(model, [prompt], stop_ids=set(), max_new_tokens=512, greedy_share=0.0)  # type: ignore[arg-type]
    assert len(made.ids) == 30 + 512
    compute: FeaturesOf = features_of(model)  # type: ignore[arg-type]
    (wanted,) = compute([made.ids])
    assert np.array_equal(made.features, wanted.view(torch.int16).numpy().view(np.uint16))
