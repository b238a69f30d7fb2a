"""Training the head: which text it may see, which pairs it learns, and that its passes are what drafting does."""

from __future__ import annotations

import json
import string
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up_training import HIDDEN, SETTINGS, VOCAB, made_up, new_head, same, trained, true_batch
from places import TINY
from tiny_model import TinyModel, shared_tiny_model
from torch import Tensor

from harness.common.errors import UserError
from harness.train import data, loop
from harness.train.batched_llama import BatchedLlama
from harness.train.batches import TEMPLATE_TOKENS, batches, collate
from harness.train.data import Conversation, frequent_tokens, make_shards, read_shards, restore_features
from harness.train.generate import Answer, Sampler
from harness.train.held_out import calibration, held_out_acceptance
from harness.train.loop import make_optimizers, train
from harness.train.loss import LOSS_ROWS, SoftCrossEntropy, scored_rows, wanted_of
from harness.train.pipeline import slots
from harness.train.report import write_report
from harness.train.texts import Lengths, exchange_ids, held_out_texts, training_texts
from harness.train.trainers import EAGLE
from methods.engine.draft_head import EagleHead
from tasks.overlap import without_overlap
from tasks.sharegpt import conversations, exchanges, is_reserved, prompts, split

# ---- the text ----

QUESTION = "Explain in a few plain words how a lighthouse lamp was turned before there was electricity, and by whom."


def talk(*values: str) -> dict:
    return {
        "id": values[0][:6],
        "conversations": [{"from": "human" if i % 2 == 0 else "gpt", "value": value} for i, value in enumerate(values)],
    }


@pytest.mark.parametrize("cut", [1, 9, 30, 120])
def test_every_whole_conversation_of_a_file_cut_off_in_the_middle_is_read(cut: int, tmp_path: Path) -> None:
    talks = [talk('Tell me about [brackets] and "quotes"', "They {nest}."), talk("naïve ünïcode \n text"), talk("x" * 400)]
    file = tmp_path / "sharegpt.json"
    file.write_text(json.dumps(talks, indent=1, ensure_ascii=False)[:-cut], encoding="utf-8")
    assert list(conversations(file)) == (talks if cut <= 2 else talks[:2])


def test_a_whole_file_and_an_empty_one_are_read_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    for talks in ([talk("one"), talk("two")], []):
        file.write_text(json.dumps(talks))
        assert list(conversations(file)) == talks


def test_prompts_are_first_user_turns_each_once_in_a_seeded_order() -> None:
    talks = [talk(f"Question number {i} about something") for i in range(40)] + [talk("Question number 3 about something")]
    talks += [talk("short"), talk("не по-английски, совсем не по-английски"), {"id": "none", "conversations": []}]
    found = prompts(talks, seed=1)
    assert sorted(found) == sorted({f"Question number {i} about something" for i in range(40)})
    assert found == prompts(talks, seed=1) != prompts(talks, seed=2)


def test_some_prompts_ask_for_a_summary_of_a_long_answer() -> None:
    talks = [talk(f"Question number {i} about something", f"{i} " + "word " * 400) for i in range(50)]
    found = prompts(talks, seed=0, summarize_share=0.1)
    assert sum(len(p) > 1500 for p in found) == 5 and len(found) == 55


def test_later_turns_are_prompts_where_they_are_long() -> None:
    later = "And could you now explain the second of these points in some more detail, please?"
    found = prompts([talk("Question number 1 about something", "An answer.", later, "Yes.", "go on")], seed=0)
    assert sorted(found) == sorted(["Question number 1 about something", later])


def test_a_fixed_share_of_prompts_is_reserved_whatever_their_layout() -> None:
    texts = [f"Question number {i} about something" for i in range(4000)]
    reserved = [t for t in texts if is_reserved(t)]
    assert 0.01 < len(reserved) / 4000 < 0.03
    assert all(is_reserved(f"  {t.upper()}?\n") for t in reserved)


def test_dialogues_are_held_out_whole_and_nothing_of_them_is_trained_on() -> None:
    talks = []
    for i in range(400):
        turns = [f"Question number {i} about something", f"Answer {i} " + "word " * 400, "x", "y"]
        later = f"And could you explain point {i} of these in some more detail, with an example, please?"
        talks.append(talk(*turns) | {"id": f"d{i}_0"})
        talks.append(talk(later, f"A second answer {i} " + "word " * 10) | {"id": f"d{i}_7"})  # the same dialogue, cut
    parts = split(talks)
    assert 10 < len(parts.held) / 2 < 45
    of = [{item["id"].split("_")[0] for item in part} for part in (parts.training, parts.held)]
    assert not of[0] & of[1] and len(of[0] | of[1]) == 400
    copied = talk("Hello there", "Hi.", parts.held[1]["conversations"][0]["value"].upper(), "Answer.", "Another long turn " * 5)
    kept = [split([*talks, copied | {"id": f"copy{i}"}]) for i in range(8)]
    assert all(copied["conversations"] not in [item["conversations"] for item in part.training] for part in kept)
    held = set(prompts(parts.held, seed=0))
    assert held and held.isdisjoint(prompts(parts.training, seed=0))
    assert held.isdisjoint(question for question, _ in exchanges(parts.training))


def test_exchanges_are_the_openings_with_both_sides() -> None:
    talks = [
        talk("A question long enough", "An answer that is long enough to be kept, forty characters"),
        talk("A lone question"),
    ]
    assert exchanges(talks) == [tuple(turn["value"] for turn in talks[0]["conversations"])]


@pytest.mark.parametrize(
    "copy",
    [
        QUESTION,
        f"  {QUESTION.upper()}\n",
        QUESTION.replace(" ", "\n  ").translate(str.maketrans("", "", string.punctuation)),
        f"Hello! Please help me with my homework. {QUESTION} Thanks!",
        QUESTION.replace("Explain", "Describe"),
        f"Summarize: {' '.join(QUESTION.split()[3:])} And then there is more text after it.",
    ],
    ids=["same", "case", "layout", "inside", "first word", "tail"],
)
def test_a_planted_copy_of_an_evaluation_prompt_is_dropped(copy: str) -> None:
    other = "How do I turn a list of numbers into a sorted list without repeats in Python, and what does it cost me?"
    assert without_overlap([other, copy], [QUESTION, "What is iron?"]) == ([other], 1)


def test_a_short_evaluation_prompt_is_known_whatever_its_layout() -> None:
    assert without_overlap(["what is IRON"], ["What is iron?"]) == ([], 1)


def test_unrelated_prompts_and_shared_phrases_are_kept() -> None:
    near = [
        "Explain in a few plain words how a lighthouse works.",  # eight words in common
        "Who turned the lamp before there was electricity, and by whom was it paid?",
        "What is iron made of and where is it mined today by the large companies of this world?",
    ]
    assert without_overlap(near, [QUESTION, "What is iron?"]) == (near, 0)


TEMPLATE = "Write an engaging post for the blog of a small family bakery in the old town about {}, in a warm and friendly tone."
LETTERS = "Now turn this into {} ~~ ** -- == ~~ ** -- == ~~ ** -- ==", "a limerick"  # long, but of few letters


def near_copies() -> tuple[list[dict], list[dict]]:
    """(held dialogues, training dialogues): none is another's copy, but prompts of both come from one template, are one inside
    the other, or are a later turn of few letters."""

    def named(is_held: bool, n: int, *values: str) -> dict:
        """A dialogue with an id of those that are held, or that are not."""
        ids = (f"{n}-{i}" for i in range(1000))
        return next(item for i in ids if bool(split([item := talk(*values) | {"id": i}]).held) is is_held)

    answer, once = "Certainly, here is a first draft of it as you asked me to write.", LETTERS[0].format(LETTERS[1])
    held = [named(True, 0, TEMPLATE.format("sourdough"), answer + " Sourdough!", once, "A limerick, then, as you wish."),
            named(True, 1, QUESTION, answer + " Lamps!")]  # fmt: skip
    training = [named(False, 2, TEMPLATE.format("rye bread"), answer + " Rye!"),
                named(False, 3, f"{QUESTION} Answer in French, s'il vous plait.", answer + " Des lampes!"),
                named(False, 4, "What rhymes with bread, butter and jam?", answer + " Ham!", once.upper(), "No."),
                named(False, 5, "How do I keep bees in a small garden?", answer + " Bees!")]  # fmt: skip
    return held, training


def test_near_copies_of_held_out_prompts_are_not_trained_on() -> None:
    held, training = near_copies()
    dialogues = split([*held, *training])
    assert (len(dialogues.held), len(dialogues.training)) == (2, 4)  # none is a copy as a whole
    assert len(held_out_texts(dialogues, 0, [])) == 3
    kept, n_dropped = training_texts(dialogues, 0, [])
    assert (sorted(kept), n_dropped) == (["How do I keep bees in a small garden?", "What rhymes with bread, butter and jam?"], 3)


def test_nor_are_their_exchanges() -> None:
    held, training = near_copies()
    tiny = shared_tiny_model("float64")
    found = exchange_ids(
        tiny.loaded, split([*held, *training]), 0, ["What rhymes with bread, butter and jam?"], Lengths(700, 400)
    )
    texts = [tiny.loaded.tokenizer.decode(ids) for ids, _ in found]
    assert len(texts) == 1 and "Bees!" in texts[0]


# ---- batches ----


def test_batches_hold_every_conversation_once_within_the_budget() -> None:
    items = made_up(37)
    seen = []
    for batch in batches(items, SETTINGS, epoch=0):
        longest = max(min(len(items[i].ids), SETTINGS.max_length) for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= SETTINGS.batch_tokens
        seen += batch
    assert sorted(seen) == list(range(37))


def test_the_order_of_batches_is_that_of_seed_and_epoch() -> None:
    items = made_up(37)
    first = batches(items, SETTINGS, epoch=0)
    assert first == batches(items, SETTINGS, epoch=0)
    assert first != batches(items, SETTINGS, epoch=1)
    assert first != batches(items, replace(SETTINGS, seed=6), epoch=0)


def test_a_pair_is_trained_where_its_token_is_the_answers() -> None:
    items = made_up(6)
    batch = collate(items, max_length=40, hidden=HIDDEN)
    n = batch.ids.shape[1]
    assert n == 40 and batch.features.dtype == torch.bfloat16
    for row, c in enumerate(items):
        length = min(len(c.ids), n)
        assert batch.ids[row].tolist() == [*c.ids[:length].tolist(), *[0] * (n - length)]
        bits = batch.features[row, :length].view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(bits, c.features[:length]) and not batch.features[row, length:].any()
        for i in range(n - 1):  # pair i: (f_i, t_{i+1})
            assert batch.trained[row, i] == (c.n_prompt <= i + 1 < length)
            assert batch.prompt[row, i] == (TEMPLATE_TOKENS <= i and i + 1 < c.n_prompt)


# ---- the passes are drafting ----


@pytest.fixture(scope="module")
def tiny_model_32() -> TinyModel:
    return shared_tiny_model("float32")


@torch.inference_mode()
def test_pass_s_is_what_drafting_computes_at_depth_s(tiny_model_32: TinyModel) -> None:
    drafter, lm_head = tiny_model_32.loaded.drafter, tiny_model_32.loaded.target.lm_head
    assert drafter is not None
    batch, n, depth = true_batch(tiny_model_32, 24), 24, 4
    passes = list(EAGLE.predicted_features(drafter.head, drafter.embedding, batch, depth))
    assert [out.shape for out, _ in passes] == [(2, n - 1, 64)] * depth
    checked = [0] * depth
    for row in range(2):
        ids = batch.ids[row].tolist()
        for last in range(0, n - depth, 3):  # the last pair whose feature is the target's
            drafter.start(64)
            drafter.observe(ids[1 : last + 2], batch.features[row, : last + 1])
            logits = [drafter.root_logits()[0]]
            for d in range(1, depth):
                sees = torch.ones(1, d, dtype=torch.bool)
                logits.append(drafter.expand(torch.tensor(ids[last + d + 1 : last + d + 2]), torch.tensor([d - 2]), sees)[0])
            for s in range(depth):
                if not passes[s][1][row, last + s]:
                    continue
                checked[s] += 1
                wanted: Tensor = lm_head(passes[s][0][row, last + s])
                assert (logits[s] - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert min(checked) >= 4


@torch.inference_mode()
def test_a_pass_is_valid_where_all_it_was_fed_is_trained(tiny_model_32: TinyModel) -> None:
    drafter = tiny_model_32.loaded.drafter
    assert drafter is not None
    batch = true_batch(tiny_model_32, 24)
    for s, (_, valid) in enumerate(EAGLE.predicted_features(drafter.head, drafter.embedding, batch, 3)):
        for row in range(2):
            for i in range(23):
                assert valid[row, i] == (i >= s and bool(batch.trained[row, i - s : i + 1].all()))


@torch.inference_mode()
def test_noise_is_on_the_true_features_alone_and_bounded(tiny_model_32: TinyModel) -> None:
    drafter = tiny_model_32.loaded.drafter
    assert drafter is not None
    batch = true_batch(tiny_model_32, 24)
    torch.manual_seed(0)
    (clean, _), (noisy, _) = (next(EAGLE.predicted_features(drafter.head, drafter.embedding, batch, 1, a)) for a in (0.0, 0.1))
    (small, _) = next(EAGLE.predicted_features(drafter.head, drafter.embedding, batch, 1, 1e-6))
    assert (noisy - clean).abs().max() > 1e-3 > (small - clean).abs().max()


# ---- the training loop ----


def test_training_is_deterministic_given_the_seed_and_learns(tmp_path: Path) -> None:
    one, curve = trained(tmp_path / "one")
    two, _ = trained(tmp_path / "two")
    other, _ = trained(tmp_path / "other", replace(SETTINGS, seed=6))
    assert same(one, two) and not same(one, other)
    assert curve[-1]["tokens"] >= SETTINGS.tokens and curve[-1]["step"] >= 8
    longer = trained(tmp_path / "longer", replace(SETTINGS, tokens=6000))[1]
    assert longer[-1]["loss"] < curve[-1]["loss"]


@pytest.mark.parametrize("muon", [False, True])
def test_training_interrupted_and_resumed_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muon: bool
) -> None:
    settings = replace(SETTINGS, muon=muon)
    whole, curve = trained(tmp_path / "whole", settings)
    clock = iter(range(0, 10**6, 100))  # every look at the clock is 100 s later: saves and checks come every few steps
    monkeypatch.setattr(loop, "CHECK_EVERY", 120)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    said: list[str] = []

    def dying(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            raise KeyboardInterrupt

    for _ in range(2):  # killed twice
        said.clear()
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "resumed", settings, say=dying)
    messages: list[str] = []
    resumed, after = trained(tmp_path / "resumed", settings, say=messages.append)
    assert messages[0].startswith("resuming at step")
    assert 0 < int(messages[0].split()[3].rstrip(",")) < curve[-1]["step"]
    assert same(whole, resumed)
    assert (after[-1]["step"], after[-1]["tokens"]) == (curve[-1]["step"], curve[-1]["tokens"])


def test_the_cross_entropy_and_its_gradient_are_those_of_the_plain_formula() -> None:
    torch.manual_seed(0)
    m = 2 * LOSS_ROWS + 7  # several chunks and a rest
    features, rows = torch.randn(m, HIDDEN), torch.randn(9, HIDDEN)
    predicted = (features + torch.randn(m, HIDDEN)).requires_grad_()
    wanted = wanted_of(features, rows)
    assert torch.allclose(wanted, (features @ rows.T).softmax(-1))
    plain = -(wanted * (predicted @ rows.T).log_softmax(-1)).sum(-1).mean()
    (expected,) = torch.autograd.grad(3 * plain, predicted)
    loss = SoftCrossEntropy.apply(predicted, rows, wanted)
    (gradient,) = torch.autograd.grad(3 * loss, predicted)
    assert torch.allclose(loss, plain) and torch.allclose(gradient, expected, atol=1e-7)
    rows.requires_grad_()  # where the LM head is trained, too
    plain = -(wanted * (predicted @ rows.T).log_softmax(-1)).sum(-1).mean()
    expected = torch.autograd.grad(3 * plain, (predicted, rows))
    gradients = torch.autograd.grad(3 * SoftCrossEntropy.apply(predicted, rows, wanted), (predicted, rows))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True))


def test_a_batch_is_scored_over_frequent_tokens_its_own_and_some_at_random() -> None:
    torch.manual_seed(0)
    frequent, ids = torch.arange(0, 3000, 2), torch.tensor([[1, 3, 3000], [4, 4, 4999]])
    rows = scored_rows(frequent, ids, 5000)
    assert len(rows) == 2048 == len(rows.unique())
    assert set(frequent.tolist()) | set(ids.flatten().tolist()) <= set(rows.tolist())
    assert not rows.equal(scored_rows(frequent, ids, 5000))
    assert len(scored_rows(torch.arange(40), ids % 40, 40)) == 40  # all there are


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_trained_on_normalised_inputs_is_shipped_as_one_of_plain_inputs(bias: bool) -> None:
    head = EagleHead(replace(new_head().config, bias=bias))
    embedding = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    EAGLE.initialise(head, embedding, made_up(8), SETTINGS)
    shipped = EAGLE.shipped(head)
    assert shipped.state_dict().keys() == EagleHead(head.config).state_dict().keys()
    x = 5 * torch.randn(3, 2 * HIDDEN)
    assert torch.allclose(head.fc(x), shipped.fc(x), rtol=1e-4, atol=1e-4)
    normal = (x - head.fc.mean) / head.fc.std
    assert torch.allclose(head.fc(x), F.linear(normal, head.fc.weight, head.fc.bias), rtol=1e-4, atol=1e-4)
    assert EAGLE.shipped(shipped).state_dict()["fc.weight"].equal(shipped.fc.weight)


def test_a_head_starts_as_the_least_squares_map_to_the_next_feature() -> None:
    """A feature depends on its token alone in the made-up text, and tokens are fewer than a feature's dimensions."""
    few, rng = 12, np.random.default_rng(0)
    table = torch.from_numpy(rng.normal(size=(few, HIDDEN))).to(torch.bfloat16)
    items = []
    for _ in range(20):
        ids = rng.integers(1, few, size=50).astype(np.int32)
        bits = table[torch.from_numpy(ids).long()].view(torch.int16).numpy().view(np.uint16)
        items.append(Conversation(ids, bits, 10))
    embedding = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    batch = collate(items[:3], 50, HIDDEN)
    wrong = {}
    for linear in (True, False):
        head = new_head()
        EAGLE.initialise(head, embedding, items, replace(SETTINGS, linear_start=linear))
        with torch.no_grad():
            (out, valid) = next(EAGLE.predicted_features(head, embedding.float(), batch, 1))
        wrong[linear] = float((out[valid] - batch.features[:, 1:][valid].float()).abs().mean())
    assert wrong[True] < 0.05 < 0.5 < wrong[False]


class RunsCode:
    """What a pickle of somebody else's may hold."""

    def __reduce__(self) -> tuple:
        return print, ("it ran",)


@pytest.mark.parametrize("content", [b"", b"half of it", "pickle"], ids=["empty", "cut", "pickle"])
def test_a_checkpoint_that_is_none_is_one_line_and_runs_no_code(
    content: bytes | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "checkpoint.pt"
    torch.save({"head": RunsCode()}, file) if isinstance(content, str) else file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file} is no checkpoint that can be read"):
        trained(tmp_path, SETTINGS)
    assert "it ran" not in capsys.readouterr().out


def test_a_training_goes_on_with_more_data_in_a_new_epoch_but_not_with_less(tmp_path: Path) -> None:
    embedding, lm_head = (torch.randn(VOCAB, HIDDEN).to(torch.bfloat16) for _ in range(2))
    items, said = made_up(30), []

    def run(n: int) -> list[dict]:
        return train(EAGLE, new_head(), embedding, lm_head, items[3:n], items[:3], SETTINGS, tmp_path, say=said.append)

    run(20)
    run(30)
    assert any("the data has grown" in text for text in said)
    with pytest.raises(UserError, match="other settings or data"):
        run(20)


def test_muon_moves_matrices_and_adamw_the_rest() -> None:
    head = new_head()
    adamw, muon = make_optimizers(head, replace(SETTINGS, muon=True))
    shapes = [[p.dim() for g in o.param_groups for p in g["params"]] for o in (adamw, muon)]
    assert set(shapes[0]) == {1} and set(shapes[1]) == {2} and sum(map(len, shapes)) == len(list(head.parameters()))
    (only,) = make_optimizers(head, SETTINGS)
    assert sum(len(g["params"]) for g in only.param_groups) == len(list(head.parameters()))


def test_a_head_may_have_another_width(tiny_model_32: TinyModel) -> None:
    head = EAGLE.new(tiny_model_32.loaded.target.model.config, replace(SETTINGS, intermediate_size=40))
    assert head.layer.mlp.up_proj.weight.shape == (40, 64)


def test_a_training_is_made_longer_from_before_its_cooldown(tmp_path: Path) -> None:
    """Until then its rate is constant, so it is the beginning of the longer one."""
    settings = replace(SETTINGS, unroll=1, cooldown=0.5, held_out=3)
    longer = replace(settings, tokens=2800)
    whole, _ = trained(tmp_path / "whole", longer)
    short, _ = trained(tmp_path / "parts", settings)
    with pytest.raises(UserError, match="before-cooldown.pt, if there is one"):
        trained(tmp_path / "parts", longer)
    before = tmp_path / "parts" / "before-cooldown.pt"
    (tmp_path / "parts" / "checkpoint.pt").write_bytes(before.read_bytes())  # and the old file left there
    made, curve = trained(tmp_path / "parts", longer)
    seen = [torch.load(tmp_path / part / before.name, weights_only=False)["state"]["seen"] for part in ("parts", "whole")]
    assert seen[0] == seen[1] >= 1400, "it is the longer training's own"
    assert same(made, whole) and not same(short, whole) and curve[-1]["tokens"] >= 2800


def test_a_finished_training_is_not_repeated_and_other_settings_are_refused(tmp_path: Path) -> None:
    weights, curve = trained(tmp_path)
    again, same_curve = trained(tmp_path)
    assert same(weights, again) and same_curve == curve
    with pytest.raises(UserError, match="other settings"):
        trained(tmp_path, replace(SETTINGS, learning_rate=1.0))


def test_a_batch_of_which_nothing_is_scored_is_scored_whole(tmp_path: Path) -> None:
    weights, curve = trained(tmp_path, replace(SETTINGS, ce_share=1e-9))
    assert curve[-1]["tokens"] >= SETTINGS.tokens and all(torch.isfinite(w).all() for w in weights.values())


def test_conversations_cut_before_their_answers_are_left_out(tmp_path: Path) -> None:
    _, curve = trained(tmp_path / "some", replace(SETTINGS, max_length=12))
    assert curve[-1]["tokens"] >= SETTINGS.tokens
    with pytest.raises(UserError, match="at max_length 3 no conversation has a token of its answer left"):
        trained(tmp_path / "none", replace(SETTINGS, max_length=3))


# ---- the data engine ----


def test_shards_hold_the_targets_answers_with_their_features_and_are_made_once(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=torch.bfloat16).eval()
    questions = [prompt[:40] for prompt in shared_tiny_model("float64").prompts[:6]]

    def shards(folder: Path, n_tokens: int = 10**6) -> int:
        return make_shards(
            folder, model, questions, stop_ids={0, 2}, n_tokens=n_tokens, max_new_tokens=12, shard_prompts=3, n_slots=2,
            greedy_share=1.0, say=lambda text: None,
        )  # fmt: skip

    held = shards(tmp_path / "whole")
    assert shards(tmp_path / "parts", n_tokens=1) < held == shards(tmp_path / "parts")  # stopped after a shard, then on
    items = read_shards(tmp_path / "whole", 64)
    assert sum(len(c.ids) - c.n_prompt for c in items) == held
    assert sorted(c.ids[: c.n_prompt].tolist() for c in items) == sorted(questions)
    for whole, part in zip(items, read_shards(tmp_path / "parts", 64), strict=True):
        assert np.array_equal(whole.ids, part.ids) and np.array_equal(whole.features, part.features)
    exact = LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=torch.float32).eval()
    for c in items:
        with torch.inference_mode():
            wanted = exact.model(torch.from_numpy(c.ids.astype(np.int64))[None]).last_hidden_state[0]
        features = torch.from_numpy(np.array(c.features).view(np.int16)).view(torch.bfloat16).float()
        assert F.cosine_similarity(features, wanted, dim=-1).min() > 0.99
        assert c.n_prompt == 40
    for features in (tmp_path / "whole").glob("*.features"):
        before = features.read_bytes()
        features.unlink()
        restore_features(tmp_path / "whole", model, say=lambda text: None)
        again = [np.frombuffer(b, np.uint16).view(np.int16) for b in (before, features.read_bytes())]
        a, b = (torch.from_numpy(x.copy()).view(torch.bfloat16).float().view(-1, 64) for x in again)
        assert F.cosine_similarity(a, b, dim=-1).min() > 0.99


def test_the_count_of_answers_never_passes_its_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def answers(model: object, prompts: list[list[int]], *, progress: Callable[[int], None], **_: object) -> Iterator[Answer]:
        for i, prompt in enumerate(prompts):
            progress(15_000)
            ids = np.array(prompt * 15_000, dtype=np.int32)
            yield Answer(i, ids, np.zeros((len(ids), 1), dtype=np.uint16), 1, True)

    monkeypatch.setattr(data, "answers", answers)
    make_shards(tmp_path, None, [[i] for i in range(4)], stop_ids=set(), n_tokens=20_000, shard_prompts=4, say=said.append)  # type: ignore[arg-type]
    assert [line.split(", ")[0] for line in said[:2]] == ["answers: 15,000 of 20,000 tokens", "answers: 30,000 tokens"]
    assert not any(" of " in line for line in said[1:])


def test_a_shard_belongs_to_the_process_that_holds_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(data, "WAIT", 0.01)
    model = LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=torch.bfloat16).eval()
    questions = [prompt[:40] for prompt in shared_tiny_model("float64").prompts[:6]]
    first, second = (tmp_path / f"shard-0000{i}.npz" for i in (0, 1))
    with ThreadPoolExecutor(1) as pool, filelock.FileLock(first.with_suffix(".lock")):
        job = pool.submit(make_shards, tmp_path, model, questions, stop_ids={0, 2}, n_tokens=10**6, max_new_tokens=4,
                          shard_prompts=3, say=lambda text: None)  # fmt: skip
        while not second.exists():
            job.exception(0.01) if job.done() else time.sleep(0.01)
        assert not first.exists() and not job.done()
    assert job.result() > 0 and first.exists()


@torch.inference_mode()
def test_prompts_share_their_first_tokens_and_slots_may_move(tiny_model_32: TinyModel) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=torch.float32).eval()
    prefix = tiny_model_32.prompts[0][:6]
    texts = [prefix + tiny_model_32.prompts[1][:9], prefix + tiny_model_32.prompts[2][:30], prefix + [5]]
    llama = BatchedLlama(model, 3, prefix)

    def check(text: list[int], features: Tensor) -> None:
        wanted = model.model(torch.tensor([text])).last_hidden_state[0]
        assert (features - wanted[-len(features) :]).abs().max() < 1e-4 * wanted.abs().max()

    for text, features in zip(texts, llama.prefill([0, 1, 2], texts), strict=True):
        assert len(features) == len(text)
        check(text, features)
    texts = [[*text, 7 + i] for i, text in enumerate(texts)]
    llama.step([t[-1] for t in texts], [len(t) - 1 for t in texts])
    llama.move(2, 0, len(texts[2]))  # the first has ended
    texts = [[*texts[2], 9], [*texts[1], 8]]
    features = llama.step([t[-1] for t in texts], [len(t) - 1 for t in texts])
    for i in range(2):
        check(texts[i], features[i : i + 1])


def test_what_is_sampled_follows_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(4000, 1)
    sampler = Sampler(torch.Generator().manual_seed(0), 4, 4000, torch.device("cpu"))
    drawn = sampler(logits.to(torch.bfloat16), [False] * 3999 + [True])
    assert drawn[-1] == 2
    shares = np.bincount(drawn[:-1], minlength=4) / 3999
    assert np.abs(shares - logits[0].softmax(-1).numpy()).max() < 4 * 0.5 / 4000**0.5


@torch.inference_mode()
def test_slots_of_different_lengths_are_each_what_the_model_says_of_their_text(tiny_model_32: TinyModel) -> None:
    """Prompts are prefilled into slots, grow side by side, are replaced, and the buffers shrink again."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=torch.float32).eval()
    llama = BatchedLlama(model, 3, [])
    texts = [tiny_model_32.prompts[0][:5], (tiny_model_32.prompts[2] * 9)[:300], tiny_model_32.prompts[3][:20]]

    def check(slot: int, features: Tensor) -> None:
        wanted = model.model(torch.tensor([texts[slot]])).last_hidden_state[0]
        assert (features - wanted[-len(features) :]).abs().max() < 1e-4 * wanted.abs().max()

    for slot, text in enumerate(texts):
        check(slot, llama.prefill([slot], [text])[0])
    for round_ in range(12):
        for slot in range(3):
            texts[slot] = [*texts[slot], 7 + (slot + round_) % 50]
        features = llama.step([t[-1] for t in texts], [len(t) - 1 for t in texts])
        for slot in range(3):
            check(slot, features[slot : slot + 1])
        if round_ == 5:
            wide = llama.width
            texts[1] = tiny_model_32.prompts[4][:30]
            check(1, llama.prefill([1], [texts[1]])[0])
    assert llama.width < wide


def test_a_model_of_another_make_is_refused() -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(TINY.parent / "target")
    model.config.attention_bias = True
    with pytest.raises(ValueError, match="only plain LLaMA"):
        BatchedLlama(model, 2, [])


# ---- what is said of a head ----


def test_a_head_is_shown_by_its_curve_and_its_calibration(tmp_path: Path) -> None:
    curve = [{"tokens": n, "train_top1": 0.1, "top1": 0.2, "top10": 0.5, "chain_tau": 1.2} for n in (10, 20)]
    bins = [{"depth": d, "bin": 0.1, "n": 5, "confidence": 0.1, "accepted": 0.2, "sampled": 0.1} for d in (1, 2)]
    assert write_report(tmp_path) == []
    for name, rows in (("curve", curve), ("calibration", bins)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {p.name for p in write_report(tmp_path)} == {f"{n}.png" for n in ("training", "calibration")}


def test_frequent_tokens_are_those_of_answers_ties_to_the_lower_id() -> None:
    def one(prompt: list[int], answer: list[int]) -> Conversation:
        return Conversation(np.array([*prompt, *answer], dtype=np.int32), np.zeros(0, dtype=np.uint16), len(prompt))

    items = [one([9, 9, 9, 9], [5, 3, 5]), one([9], [3, 7])]
    assert frequent_tokens(items, 10).tolist() == [3, 5, 7]
    assert frequent_tokens(items, 10, most=2).tolist() == [3, 5]


def test_held_out_figures_are_counts_over_conversations_of_each_kind() -> None:
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    embedding, lm_head = (torch.randn(VOCAB, HIDDEN, generator=rng).to(torch.bfloat16) for _ in range(2))
    items, head = made_up(12), new_head()
    found = held_out_acceptance(EAGLE, head, embedding, lm_head, items, depth=3)
    assert 0 <= found["top1"] <= found["top10"] <= 1 <= found["chain_tau"] <= 4
    assert found["chain_tau_short"] == found["chain_tau"] and "chain_tau_long" not in found
    alone = [
        held_out_acceptance(EAGLE, head, embedding, lm_head, [c], depth=3)["top1"] * (len(c.ids) - c.n_prompt) for c in items
    ]
    assert found["top1"] == pytest.approx(sum(alone) / sum(len(c.ids) - c.n_prompt for c in items))


@torch.no_grad()
def test_held_out_figures_are_those_of_counting_every_position() -> None:
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    embedding, lm_head = (torch.randn(VOCAB, HIDDEN, generator=rng).to(torch.bfloat16) for _ in range(2))
    head = new_head()
    items = made_up(4)
    EAGLE.initialise(head, embedding, items, SETTINGS)
    found = held_out_acceptance(EAGLE, head, embedding, lm_head, items, depth=3)
    first = among = n = chained = 0
    for c in items:
        batch = collate([c], 100, HIDDEN)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            passes = [(F.linear(out[0].to(torch.bfloat16), lm_head), valid[0])
                      for out, valid in EAGLE.predicted_features(head, embedding, batch, 3)]  # fmt: skip
            target = F.linear(batch.features[0, 1:], lm_head).argmax(-1)
        for i in torch.nonzero(passes[0][1])[:, 0].tolist():
            n += 1
            first += int(passes[0][0][i].argmax() == target[i])
            among += int(target[i] in passes[0][0][i].topk(10).indices)
            for s, (logits, valid) in enumerate(passes):
                if i + s >= len(target) or not valid[i + s] or logits[i + s].argmax() != target[i + s]:
                    break
                chained += 1
    assert found["top1"] == pytest.approx(first / n) and found["chain_tau"] == pytest.approx(1 + chained / n)
    assert found["top10"] == pytest.approx(among / n, abs=2 / n) and chained > first > 0


def test_calibration_bins_hold_every_child_once() -> None:
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    embedding, lm_head = (torch.randn(VOCAB, HIDDEN, generator=rng).to(torch.bfloat16) for _ in range(2))
    items = made_up(6)
    rows = calibration(EAGLE, new_head(), embedding, lm_head, items, top_k=4, depth=2, n_bins=10)
    assert sum(r["n"] for r in rows if r["depth"] == 1) == 4 * sum(len(c.ids) - c.n_prompt for c in items)
    for r in rows:
        assert r["bin"] - 1e-6 <= r["confidence"] <= r["bin"] + 0.1 + 1e-6
        assert 0 <= r["accepted"] <= 1 and 0 <= r["sampled"] <= 1


@pytest.mark.parametrize(("free", "n"), [(10**6, 1), (300 * 2**20, 75), (10**12, 512)])
def test_on_a_gpu_as_many_conversations_are_answered_at_once_as_fit(free: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 layers, 2 heads of 64: keys and values of 1,024 tokens take 2 MiB a conversation."""
    longest = Lengths(768, 256)
    target = SimpleNamespace(
        device=torch.device("cuda"), cache=SimpleNamespace(kv_heads=2, head_dim=64),
        model=SimpleNamespace(config=SimpleNamespace(num_hidden_layers=4)),
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert slots(target, 2, longest) == n  # type: ignore[arg-type]
    target.device = torch.device("cpu")
    assert slots(target, 2, longest) == 128  # type: ignore[arg-type]
