"""Training an EAGLE-3 head: its loss, its draft vocabulary, its states on the disk, and what it is refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up_training import HIDDEN, VOCAB, made_up
from places import TINY
from torch import Tensor
from training_process import MODEL, in_float32, settings_of, tables
from transformers import LlamaForCausalLM

from harness.common.errors import UserError
from harness.load.eagle3_head import head_config
from harness.load.kinds import drafter_kind
from harness.train.batches import collate
from harness.train.data import Conversation, add_states, aux_suffix, frequent_tokens, make_shards, make_text_shards, read_shards
from harness.train.eagle3 import initialise, new_head, shipped, take_lm
from harness.train.generate import features_of
from harness.train.held_out import held_out_acceptance
from harness.train.loop import batch_loss
from harness.train.request import training_settings
from harness.train.save import save_drafter
from harness.train.settings import TrainSettings
from harness.train.trainers import EAGLE3
from methods.engine.eagle3 import Eagle3Head

SETTINGS = settings_of("eagle3", 10)


def begun(items: list[Conversation], lm_head: Tensor, settings: TrainSettings = SETTINGS) -> Eagle3Head:
    torch.manual_seed(0)
    head = new_head(MODEL, settings)
    initialise(head, tables()[0], items, settings)
    take_lm(head, lm_head)
    for p in head.midlayer.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.1)  # so that it says something
    return head


@torch.no_grad()
def test_the_loss_is_of_seven_passes_over_the_draft_vocabulary_where_the_targets_argmax_is_in_it() -> None:
    """Against one position and pass at a time: the target's law over the draft vocabulary, weights 0.8^i."""
    embedding, lm_head = tables()
    items = made_up(6)
    head = begun(items, lm_head)
    assert SETTINGS.unroll == 7 and SETTINGS.unroll_decay == 0.8 and SETTINGS.unroll_from == 0
    with in_float32():
        batch = collate(items[:3], 48, HIDDEN)
        batch.prompt[:] = False
        loss, agree = batch_loss(EAGLE3, head, embedding, lm_head, torch.arange(20), batch, 7, SETTINGS)
        passes = list(EAGLE3.predicted_features(head, embedding, batch, 7))
    total, of_first, n_outside = 0.0, [], 0
    for s, (out, valid) in enumerate(passes):
        of_pass, n = 0.0, 0
        for row, i in valid.nonzero().tolist():
            logits = batch.features[row, i + 1] @ lm_head.T
            n += 1
            if not head.t2d[logits.argmax()]:
                n_outside += 1
                of_first += [False] * (s == 0)
                continue
            law, own = logits[head.tokens].softmax(-1), out[row, i] @ head.lm_head.weight.T
            of_pass -= float((law * own.log_softmax(-1)).sum())
            if s == 0:
                of_first.append(bool(own.argmax() == law.argmax()))
        total += of_pass / n * 0.8**s / sum(0.8**r for r in range(7))
    assert n_outside > 20 and 0 < np.mean(of_first) < 1
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert agree == pytest.approx(np.mean(of_first[:256]))


def test_every_weight_is_trained_and_the_vocabulary_is_not() -> None:
    embedding, lm_head = tables()
    items = made_up(6)
    head = begun(items, lm_head)
    before = head.tokens.clone()
    with in_float32():
        loss, _ = batch_loss(EAGLE3, head, embedding, lm_head, torch.arange(20), collate(items, 48, HIDDEN), 7, SETTINGS)
    loss.backward()
    without = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == [] and torch.equal(head.tokens, before)


def test_the_draft_vocabulary_is_what_is_frequent_in_the_answers_filled_up_with_what_is_not_there() -> None:
    _, lm_head = tables()
    items = made_up(40)
    head = begun(items, lm_head)
    assert head.tokens.tolist() == sorted(frequent_tokens(items, VOCAB, 25).tolist())
    assert torch.equal(head.lm_head.weight, lm_head[head.tokens])
    ids = np.array([9, 9, 9, 7, 7, 5], dtype=np.int32)
    few = [Conversation(ids, items[0].features[:6], 1, aux=items[0].aux[:6])]  # type: ignore[index]
    head = begun(few * 9, lm_head)
    assert head.tokens.tolist() == sorted([9, 7, 5, *[i for i in range(40) if i not in (9, 7, 5)][:22]])


@torch.no_grad()
def test_a_head_begins_as_the_least_squares_map_to_the_next_feature_and_is_shipped_for_states_as_they_are() -> None:
    embedding, lm_head = tables()
    items = made_up(30)
    torch.manual_seed(0)
    head = new_head(MODEL, SETTINGS)
    initialise(head, embedding, items, SETTINGS)
    batch = collate(items, 60, HIDDEN)
    assert batch.aux is not None
    rows = batch.trained | batch.prompt
    x, y = batch.aux[:, :-1][rows].double(), batch.features[:, 1:][rows].double()
    best = torch.linalg.lstsq(x, y).solution
    assert ((head.fused(batch.aux[:, :-1][rows].float()) - y).pow(2).mean() / (x @ best - y).pow(2).mean()) < 1.02
    done = shipped(head)
    assert done.state_dict().keys() == Eagle3Head(head.config).state_dict().keys()
    assert torch.allclose(done.fused(batch.aux.float()), head.fused(batch.aux.float()), rtol=1e-4, atol=1e-4)
    out = next(EAGLE3.predicted_features(head, embedding, replace(batch, aux=batch.aux.float()), 1))[0]
    assert out.pow(2).mean(-1)[batch.trained].sqrt().mean() == pytest.approx(float(y.pow(2).mean().sqrt()), rel=0.05)


def test_what_is_saved_is_the_layout_of_specforge_with_every_choice_written_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    _, lm_head = tables()
    head = begun(made_up(30), lm_head)
    save_drafter(EAGLE3, head, tmp_path, "cafe", [], {})
    state, values = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    layer = [f"midlayer.{name}.weight" for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm",
             *(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down")))]  # fmt: skip
    assert set(state) == {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d", *layer}
    assert state["d2t"].dtype == torch.int64 and state["t2d"].dtype == torch.bool and state["fc.weight"].dtype == torch.bfloat16
    assert state["midlayer.self_attn.q_proj.weight"].shape == (HIDDEN, 2 * HIDDEN) and state["fc.weight"].shape == (16, 48)
    assert torch.equal(state["d2t"] + torch.arange(25), state["t2d"].nonzero()[:, 0])
    assert values["architectures"] == ["LlamaForCausalLMEagle3"] and drafter_kind(tmp_path) == "eagle3"
    assert values["aux_hidden_states"] == [2, 16, 29] and "eagle_aux_hidden_state_layer_ids" not in values
    assert values["eagle_config"] == {"use_aux_hidden_state": True, "norm_before_fc": False}  # the usual, of 32 layers
    assert [values[k] for k in ("norm_output", "fc_norm", "norm_before_residual")] == [False] * 3
    assert (values["draft_vocab_size"], values["target_hidden_size"]) == (25, HIDDEN)
    assert head_config(tmp_path, "made-up", 32)[0] == head.config


@pytest.mark.parametrize(("layers", "own", "below"), [
    ((2, 16, 29), None, None), ((2, 15, 27), [2, 15, 27], [1, 14, 26]), ((0, 1, 31), [0, 1, 31], [-1, 0, 30]),
    ((2, 16, 32), None, [1, 15, 31]),
])  # fmt: skip
def test_hidden_states_that_a_trained_head_reads_are_named_for_each_reader_as_it_counts(
    layers: tuple[int, ...], own: list[int] | None, below: list[int] | None, tmp_path: Path
) -> None:
    """As SGLang and SpecForge read `eagle_config` (one more), vLLM what stands beside it (no state behind the final norm)."""
    torch.manual_seed(0)
    head = new_head(MODEL, replace(SETTINGS, aux_layers=layers))
    save_drafter(EAGLE3, head, tmp_path, "cafe", [], {})
    values, key = json.loads((tmp_path / "config.json").read_text()), "eagle_aux_hidden_state_layer_ids"
    assert (values["aux_hidden_states"], values.get(key), values["eagle_config"].get(key)) == (list(layers), own, below)
    for gone in ((), ("weights_sha256", "target_sha256")):  # which say nothing of how states are counted
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k not in gone}))
        assert head_config(tmp_path, "made-up", 32)[0].aux_layers == layers


@torch.no_grad()
@pytest.mark.parametrize("n_drafted", [25, 8])
def test_tokens_outside_the_draft_vocabulary_count_against_it_when_it_is_judged(n_drafted: int) -> None:
    embedding, lm_head = (x.to(torch.bfloat16) for x in tables())
    items = made_up(12)
    head = begun(items, lm_head, replace(SETTINGS, draft_vocab=n_drafted))
    found = held_out_acceptance(EAGLE3, head, embedding, lm_head, items, depth=2)
    n = right = among = 0
    for c in items:
        batch = collate([c], 60, HIDDEN)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, valid = next(EAGLE3.predicted_features(head, embedding, batch, 1))
            logits = F.linear(out[valid].to(torch.bfloat16), head.lm_head.weight.to(torch.bfloat16))
            wanted = F.linear(batch.features[:, 1:][valid], lm_head).argmax(-1)
        best = head.tokens[logits.topk(min(10, n_drafted)).indices]
        n += len(wanted)
        right += int((best[:, 0] == wanted).sum())
        among += int((best == wanted[:, None]).any(-1).sum())
    assert found["top1"] == pytest.approx(right / n, abs=0.01) and found["top10"] == pytest.approx(among / n, abs=0.01)


@torch.no_grad()
def test_states_are_kept_while_the_target_answers(tmp_path: Path) -> None:
    """The answers are the same with and without them, and what is kept is what a forward over the whole text gives."""
    model = LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=torch.float64).eval()
    prompts = [[1, *range(40 + i, 50 + 2 * i)] for i in range(9)]
    for name, states in (("with", (0, 1, 2)), ("without", ())):
        make_shards(
            tmp_path / name, model, prompts, stop_ids={0, 2}, n_tokens=10**6, max_new_tokens=20, shard_prompts=5, n_slots=4,
            aux_layers=states, say=lambda text: None,
        )  # fmt: skip
    said: list[str] = []
    add_states(tmp_path / "with", model, (0, 1, 2), said.append)
    assert not said  # all are there
    found = read_shards(tmp_path / "with", 64, aux_layers=(0, 1, 2))
    compute = features_of(model, (0, 1, 2))
    for c, other in zip(found, read_shards(tmp_path / "without", 64), strict=True):
        batch, plain = collate([c], 60, 64), collate([other], 60, 64)
        assert torch.equal(batch.ids, plain.ids) and torch.equal(batch.features, plain.features) and plain.aux is None
        assert batch.aux is not None
        assert torch.equal(compute([c.ids])[0], torch.cat([batch.features[0], batch.aux[0]], dim=-1))


@torch.no_grad()
def test_states_are_kept_beside_the_shards_and_made_once(tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=torch.float64).eval()
    texts = [([(7 * i + j) % 384 for j in range(20 + i)], 5) for i in range(7)]
    make_text_shards(tmp_path, model, texts, n_tokens=10**6, shard_texts=3, say=lambda text: None)
    said: list[str] = []
    add_states(tmp_path, model, (0, 1, 2), said.append)
    assert len(said) == 3 and sorted(f.name for f in tmp_path.glob("*.states*")) == [
        f"shard-0000{i}{aux_suffix((0, 1, 2))}" for i in range(3)
    ]
    add_states(tmp_path, model, (0, 1, 2), said.append)
    assert len(said) == 3 and not list(tmp_path.glob("*.part*"))
    compute = features_of(model, (0, 1, 2))
    for (ids, _), c in zip(texts, read_shards(tmp_path, 64, aux_layers=(0, 1, 2)), strict=True):
        wanted = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        batch = collate([c], 60, 64)
        assert batch.aux is not None
        assert torch.allclose(batch.aux[0].double(), torch.cat([x[0] for x in wanted], dim=-1), rtol=0.01, atol=0.01)
        assert torch.equal(compute([c.ids])[0], torch.cat([batch.features[0], batch.aux[0]], -1))


@torch.no_grad()
def test_what_a_shard_left_that_was_never_whole_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    """Killed before its .npz was there, and made again with other answers: by another kind, or on other threads."""
    model = LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=torch.float64).eval()
    first, other = ([([(a * j + 3) % 384 for j in range(20)], 5)] for a in (5, 7))

    def make(texts: list[tuple[list[int], int]], **how: Any) -> list[str]:
        (tmp_path / "shard-00000.npz").unlink(missing_ok=True)
        make_text_shards(tmp_path, model, texts, n_tokens=10**6, say=lambda text: None, **how)
        return sorted(f.name for f in tmp_path.glob("shard-*"))

    assert make(first, aux_layers=(0, 1, 2)) == ["shard-00000.features", "shard-00000.npz", "shard-00000.states-0-1-2"]
    assert make(other) == ["shard-00000.features", "shard-00000.npz"]
    add_states(tmp_path, model, (0, 1, 2), lambda text: None)
    (c,) = read_shards(tmp_path, 64, aux_layers=(0, 1, 2))
    assert c.aux is not None and torch.equal(features_of(model, (0, 1, 2))([c.ids])[0][:, 64:], collate([c], 60, 64).aux[0])  # type: ignore[index]
    for suffix in (".features", aux_suffix((0, 1, 2))):
        file = tmp_path / f"shard-00000{suffix}"
        whole = file.read_bytes()
        file.write_bytes(whole[:-128])
        with pytest.raises(UserError, match=f"{suffix} has .* bytes, and 20 tokens take .*: it is cut off, or of other texts"):
            read_shards(tmp_path, 64, aux_layers=(0, 1, 2))
        file.write_bytes(whole)
    assert make(first, keep_features=False) == ["shard-00000.npz"]


@pytest.mark.parametrize(("changes", "said"), [
    (("aux_layers=2,1,3",), "aux_layers=2,1,3: an EAGLE-3 head reads 3 hidden states, ascending, from 0 to 32"),
    (("aux_layers=1,2",), "aux_layers=1,2: an EAGLE-3 head reads 3 hidden states"),
    (("aux_layers=1,2,33",), "aux_layers=1,2,33: an EAGLE-3 head reads 3 hidden states, ascending, from 0 to 32"),
    (("aux_layers=1,2.5,3",), "training setting aux_layers is (1, 2.5, 3); it must be whole numbers from 0"),
    (("draft_vocab=41",), "draft_vocab is 41; the target has 40 tokens"),
    (("draft_vocab=0",), "draft_vocab is 0; it must be at least 1"),
    (("noise=0.1",), "unknown training setting 'noise' of eagle3"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as e:
        new_head(MODEL, training_settings((f"draft_vocab={VOCAB}", *changes), "eagle3"))
    assert said in str(e.value)


def test_a_target_of_few_layers_must_be_told_which_states_to_read() -> None:
    config = type(MODEL)(**{**MODEL.to_dict(), "num_hidden_layers": 2})
    with pytest.raises(UserError, match=r"has no usual three \(2, 1, -1\): name them with --set aux_layers=I,J,K, from 0 to 2"):
        new_head(config, replace(SETTINGS, aux_layers=()))
