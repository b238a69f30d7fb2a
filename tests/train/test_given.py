"""SpecForge's training data: what is learnt of it, what is left out, what is refused; and our own answers written as such."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import harness
from places import TINY
from tiny_model import TinyModel, shared_tiny_model

from harness.common.errors import UserError
from harness.train import pipeline
from harness.train.batches import TEMPLATE_TOKENS, collate
from harness.train.data import Conversation, frequent_tokens, make_text_shards, read_shards
from harness.train.given import Found, read_given, write_answers
from harness.train.pipeline import train_drafter
from harness.train.request import TrainRequest
from harness.train.texts import Lengths
from tasks.sharegpt import is_reserved

ROOM = Lengths(700, 400)
ASKED = "Explain in a few plain words how a lighthouse lamp was turned before there was electricity, and by whom."
LEARNT = ["How do bees find their way?", "By the sun. ", "And at night?", "They stay in."]


@pytest.fixture(scope="module")
def own() -> TinyModel:
    return shared_tiny_model("float32")


def talk(*values: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": turns} | more


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def found(own: TinyModel, path: Path, judged: tuple[str, ...] = (), lengths: Lengths = ROOM) -> Found:
    return read_given(path, own.loaded, judged, lengths)


# ---- what is learnt ----


def test_every_assistants_turn_is_learnt_with_its_end_and_nothing_else(own: TinyModel, tmp_path: Path) -> None:
    (text,) = found(own, written(tmp_path / "f", talk(*LEARNT))).texts
    decode = own.loaded.tokenizer.decode
    rendered = own.loaded.render([("user", LEARNT[0]), ("assistant", LEARNT[1]), ("user", LEARNT[2])])
    assert decode(text.ids) == rendered + LEARNT[3] + "<|im_end|>"
    spans, at = [], np.flatnonzero(np.diff([0, *map(int, text.asked), 0]))
    for a, b in zip(at[::2], at[1::2], strict=True):
        spans.append(decode(text.ids[a:b]))
    assert spans == ["By the sun. <|im_end|>", "They stay in.<|im_end|>"] and text.n_prompt == at[0]


def test_a_last_question_is_not_learnt_and_a_system_turn_is_rendered(own: TinyModel, tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    row = talk(*LEARNT[:3])
    row["conversations"].insert(0, system)
    (text,) = found(own, written(tmp_path / "f", row)).texts
    assert own.loaded.tokenizer.decode(text.ids).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow do bees"
    )
    assert sum(text.asked) == len(own.loaded.encode_text(LEARNT[1] + "<|im_end|>")) and text.asked[-1]


def test_where_a_template_alters_an_answer_a_new_text_begins(
    own: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = type(own.loaded).render

    def shortened(self: Any, turns: list[tuple[str, str]]) -> str:
        return render(self, [(role, said if role != "assistant" else said[:2]) for role, said in turns])

    monkeypatch.setattr(type(own.loaded), "render", shortened)
    first, second = found(own, written(tmp_path / "f", talk(*LEARNT))).texts
    decode = own.loaded.tokenizer.decode
    assert decode(first.ids).endswith("By the sun. <|im_end|>") and sum(first.asked) == len(first.ids) - first.n_prompt
    assert "By<|im_end|>" in decode(second.ids) and decode(second.ids[second.n_prompt :]) == "They stay in.<|im_end|>"


def test_token_ids_are_learnt_where_their_mask_says(own: TinyModel, tmp_path: Path) -> None:
    ids, mask = list(range(40, 52)), [1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1]
    for i, row in enumerate(({"input_ids": ids, "loss_mask": mask}, {"input_ids": [ids], "loss_mask": [mask]})):
        (text,) = found(own, written(tmp_path / f"{i}", row)).texts
        assert text.ids == ids and text.asked == [False, *(m == 1 for m in mask[1:])] and text.n_prompt == 3
    c = Conversation(np.array(ids, dtype=np.int32), np.zeros((12, 4), dtype=np.uint16), 3, asked=np.array(text.asked))
    batch = collate([c], 11, 4)
    assert batch.trained[0].tolist() == [m == 1 for m in [0, *mask[2:11]]]  # pair i is of token i + 1
    assert not batch.prompt.any() and TEMPLATE_TOKENS > 3
    assert sorted(frequent_tokens([c], 384).tolist()) == sorted(t for t, m in zip(ids[1:], mask[1:], strict=True) if m)


def test_a_file_may_be_one_array_and_texts_are_cut_to_the_lengths(own: TinyModel, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(json.dumps([talk(*LEARNT), talk(*LEARNT[:2])], indent=1))
    assert len(found(own, file).texts) == 2
    short = Lengths(40, 5)
    cut = found(own, file, lengths=short)
    assert all(len(text.ids) <= 45 and any(text.asked) for text in cut.texts)
    assert found(own, file, lengths=Lengths(8, 5)).n_empty == 2  # the first prompt is longer than prompts may be


# ---- what is left out ----


def as_ids(own: TinyModel, row: dict[str, Any], **config: Any) -> dict[str, Any]:
    """A conversation as token ids with a mask over the last answer, as the target is given it."""
    loaded = replace(own.loaded, config=own.loaded.config.model_copy(update=config))
    *turns, (_, answer) = [(turn["role"], turn["content"]) for turn in row["conversations"]]
    prompt, said = loaded.encode_text(loaded.render(turns)), loaded.encode_text(answer + "<|im_end|>")
    return {"input_ids": prompt + said, "loss_mask": [0] * len(prompt) + [1] * len(said)}


KEPT_FOR_TUNE = next(text for i in range(10_000) if is_reserved(text := f"Question number {i} about something"))
SHORT = "Who are you really?"
BRIEF = {"role": "system", "content": "Be brief, and say nothing that you do not know."}
LEAKS = {
    "kept for tune": talk(KEPT_FOR_TUNE, "An answer of some words."),
    "kept for tune, later": talk("Hello there, you", "Hi.", KEPT_FOR_TUNE, "An answer."),
    "under a system turn": {"conversations": [BRIEF, *talk(KEPT_FOR_TUNE, "An answer.")["conversations"]]},
    "seven words of a judged prompt": talk("how a lighthouse lamp was turned before", "An answer of some words."),
    "a judged prompt of four words": talk(SHORT, "An answer of some words."),
    "a judged prompt as an earlier answer": talk("What did you say?", SHORT, "And then?", "No more."),
    "a judged prompt within another": talk("Hello there, you", "Hi.", f"{ASKED} Answer in French.", "Ah."),
    "nothing": talk(*LEARNT),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_row_of_ids_is_left_out_where_the_same_conversation_is(name: str, own: TinyModel, tmp_path: Path) -> None:
    for i, row in enumerate((LEAKS[name], as_ids(own, LEAKS[name]))):
        seen = found(own, written(tmp_path / f"{i}", row), (ASKED, SHORT))
        assert (seen.n_overlap, len(seen.texts), seen.n_odd) == (name != "nothing", name == "nothing", 0), i


@pytest.mark.parametrize("template", ["vicuna_v1.1", "llama-2"])
@pytest.mark.parametrize("name", [name for name in LEAKS if "system" not in name])
def test_the_turns_of_ids_are_found_under_any_template(template: str, name: str, own: TinyModel, tmp_path: Path) -> None:
    config = own.loaded.config.model_copy(update={"template": template, "system": "paper"})
    file = written(tmp_path / "f", as_ids(own, LEAKS[name], template=template, system="paper"))
    seen = read_given(file, replace(own.loaded, config=config), (ASKED, SHORT), Lengths(2000, 400))
    assert (seen.n_overlap, len(seen.texts), seen.n_odd) == (name != "nothing", name == "nothing", 0)


def test_a_row_of_another_template_is_split_at_its_mask_and_told(own: TinyModel, tmp_path: Path) -> None:
    rows = []
    for said, answer in ((KEPT_FOR_TUNE, "An answer."), ("What did you say?", SHORT), ("Why?", "Because.")):
        prompt, end = own.loaded.encode_text(said), own.loaded.encode_text(answer)
        rows.append({"input_ids": prompt + end, "loss_mask": [0] * len(prompt) + [1] * len(end)})
    seen = found(own, written(tmp_path / "f", *rows), (ASKED, SHORT))
    assert (seen.n_rows, seen.n_overlap, len(seen.texts), seen.n_odd) == (3, 2, 1, 3)


def test_rows_that_overlap_what_drafters_are_judged_on_are_left_out_whatever_their_form(own: TinyModel, tmp_path: Path) -> None:
    near = f"{ASKED} Answer in French, s'il vous plait."
    encode = own.loaded.encode_text
    leaks = [talk(ASKED, "By hand."), talk(near, "A la main."), talk("Hello there, you", "Hi.", near, "Ah."),
             talk("What was that question again?", f"It was: {ASKED}")]  # fmt: skip
    file = written(tmp_path / "f", *leaks, talk(*LEARNT))
    seen = found(own, file, (ASKED,))
    assert (seen.n_rows, seen.n_overlap, seen.n_empty, len(seen.texts)) == (5, 4, 0, 1)
    assert len(found(own, file).texts) == 5
    ids = encode(own.loaded.render([("user", near)]) + "A la main.")
    rows = [{"input_ids": ids, "loss_mask": [0] * (len(ids) - 3) + [1] * 3}, {"input_ids": [9, 8, 7], "loss_mask": [0, 0, 1]}]
    seen = found(own, written(tmp_path / "g", *rows), (ASKED,))
    assert (seen.n_overlap, len(seen.texts)) == (1, 1) and seen.texts[0].ids == [9, 8, 7]


def test_prompts_kept_for_tune_are_left_out(own: TinyModel, tmp_path: Path) -> None:
    assert found(own, written(tmp_path / "f", talk(KEPT_FOR_TUNE, "An answer."))).n_overlap == 1


def test_a_trainings_file_is_held_against_held_out_prompts_and_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `harness train`, on a file alone: nothing that it may be judged on is in its shards."""
    questions = (f"How does thing number {i} of a house work, and who made it?" for i in range(120))
    held = [{"id": str(i), "conversations": [{"from": "human", "value": text}]} for i, text in enumerate(questions)]
    monkeypatch.setattr(pipeline.sharegpt, "conversations", lambda: iter(held))
    monkeypatch.setattr(pipeline, "evaluation_prompts", lambda: {"gsm8k/paper": [ASKED]})
    split = pipeline.sharegpt.split(held)
    judged = split.held[0]["conversations"][0]["value"]
    good = [talk(f"Why is the sky of planet {i} green?", f"Because of gas {i}, as all of them.") for i in range(60)]
    file = written(tmp_path / "own.jsonl", talk(judged, "It works."), talk(ASKED, "By hand."), *good)
    changes = ("batch_tokens=512", "held_out=2", "warmup_steps=2", "frequent_rows=384", "intermediate_size=16", "unroll=1")

    def trained(out: Path, *data: Path) -> dict[str, Any]:
        request = TrainRequest("medusa", str(TINY), out, tmp_path / "work", 0, None, 100, changes, threads=1, data=data)
        train_drafter(replace(request, max_new_tokens=8))
        told: dict[str, Any] = json.loads((out / "training.json").read_text())
        return told

    told = trained(tmp_path / "out", file)
    assert told["data"]["own.jsonl"] | {"sha256": ""} == {"sha256": "", "rows": 62, "overlap": 2, "nothing_to_predict": 0}
    assert told["answer_tokens"] == 0 and told["conversations"] == 60 and told["text_tokens"] > 60
    (shards,) = (tmp_path / "work").glob("texts-*")
    seen = [shared_tiny_model("float32").loaded.tokenizer.decode(c.ids) for c in read_shards(shards, 64, lambda texts: [])]
    assert len(seen) == 60 and all("planet" in text and ASKED not in text for text in seen)
    # another file is another training: the first one's checkpoint is not gone on from
    more = trained(tmp_path / "two", file, written(tmp_path / "more.jsonl", *good[:7]))
    assert more["conversations"] == 67 and len(list((tmp_path / "work" / "medusa").iterdir())) == 2
    with pytest.raises(UserError, match="nothing of .*judged.jsonl can be trained on"):
        trained(tmp_path / "three", written(tmp_path / "judged.jsonl", talk(judged, "It works.")))
    with pytest.raises(UserError, match="--answer-tokens is 0; it must be at least 1"):
        TrainRequest("medusa", str(TINY), tmp_path, answer_tokens=0)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{"], ":1: cut off, or not JSON"),
        (["3"], ":1: expected an object, not int"),
        ([talk(*LEARNT), {"text": "a"}], ":2: a row has 'conversations', or 'input_ids' and 'loss_mask'; this one has ['text']"),
        ([{"input_ids": [1]}], ":1: a row has 'conversations', or"),
        ([talk(*LEARNT), {"input_ids": [1, 2], "loss_mask": [0, 1]}], ":2: a row of another form than those before it"),
        ([{"input_ids": [1, 384], "loss_mask": [0, 1]}], ":1: input_ids holds 384; it must be a list of token ids under 384"),
        ([{"input_ids": [1, True], "loss_mask": [0, 1]}], ":1: input_ids holds True"),
        ([{"input_ids": [1, 2], "loss_mask": [0, 2]}], ":1: loss_mask holds 2; it must be a list of zeros and ones"),
        ([{"input_ids": [1, 2], "loss_mask": [0]}], ":1: input_ids has 2 entries and loss_mask 1"),
        ([{"conversations": [{"role": "tool", "content": "x"}]}], ":1: turn 1 has role 'tool' and str content; it must have a"),
        ([{"conversations": [{"role": "user", "content": None}]}], "turn 1 has role 'user' and NoneType content"),
        ([{"conversations": [{"role": "assistant", "content": "x"}]}], "the turns are of assistant; user and assistant must"),
        ([{"conversations": []}], "conversations is '[]'; it must be a list of turns"),
        ([], "is empty: expected conversations"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_a_row_that_is_wrong_is_named(rows: list[Any], said: str, own: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        found(own, written(tmp_path / "f.jsonl", *rows))
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path / "f.jsonl"))


def test_a_system_turn_under_a_template_that_has_its_own_is_refused(
    own: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"conversations": [{"role": "system", "content": "Be brief."}, *talk(*LEARNT)["conversations"]]}
    config = own.loaded.config.model_copy(update={"template": "vicuna_v1.1"})
    with pytest.raises(UserError, match="a system turn; template vicuna_v1.1 has a system prompt of its own"):
        read_given(written(tmp_path / "f", row), replace(own.loaded, config=config), (), ROOM)


# ---- on the disk ----


def test_masks_are_kept_in_shards_with_their_texts(own: TinyModel, tmp_path: Path) -> None:
    texts = found(own, written(tmp_path / "f", *(talk(*LEARNT) for _ in range(3)), talk(*LEARNT[:2]))).texts
    given = [(text.ids, text.n_prompt) for text in texts]
    make_text_shards(tmp_path / "s", own.loaded.target.model, given, n_tokens=10**6, shard_texts=3, keep_features=False,
                     asked=[text.asked for text in texts], say=lambda text: None)  # fmt: skip
    kept = read_shards(tmp_path / "s", 64, lambda ids: [])
    assert [c.ids.tolist() for c in kept] == [text.ids for text in texts]
    assert [c.asked.tolist() for c in kept if c.asked is not None] == [text.asked for text in texts]


def test_our_answers_are_written_so_that_they_are_read_as_they_are(own: TinyModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    answers = [Conversation(rng.integers(3, 380, 20 + i).astype(np.int32), np.zeros((0, 0), np.uint16), 9 + i) for i in range(4)]
    assert write_answers(tmp_path / "a.jsonl", answers, "tiny") == 4
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"tiny-{i}" for i in (1, 2, 3, 4)] and set(rows[0]) == {"id", "input_ids", "loss_mask"}
    back = found(own, tmp_path / "a.jsonl").texts
    assert [(text.ids, text.n_prompt) for text in back] == [(c.ids.tolist(), c.n_prompt) for c in answers]
    assert all(sum(text.asked) == len(text.ids) - text.n_prompt for text in back)


def test_the_command_writes_the_answers_that_it_had_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [{"id": str(i), "conversations": [{"from": "human", "value": f"How does thing number {i} in a house work?"}]}
             for i in range(120)]  # fmt: skip
    monkeypatch.setattr(pipeline.sharegpt, "conversations", lambda: iter(talks))
    words = ("train eagle --model", TINY, "--answer-tokens 200 --text-tokens 0 --tokens 0 --threads 1 --max-new-tokens 8 --work",
             tmp_path / "work", "--out", tmp_path / "out", "--write-answers", tmp_path / "a.jsonl")  # fmt: skip
    done = harness(*words)
    assert done.code == 0 and "32 written to" in done.err, done.err
    kept = read_shards(tmp_path / "work" / "few_answers", 64, lambda texts: [])
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["input_ids"] for row in rows] == [c.ids.tolist() for c in kept]
    assert [row["loss_mask"].index(1) for row in rows] == [c.n_prompt for c in kept]
