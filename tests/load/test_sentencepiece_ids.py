"""A tokenizer.model gives sentencepiece's own ids, and a run whose prompts have other ids is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import harness, isolate, measured, refused, run
from make_families import make, texts, tokenizer_settings

from harness.common.errors import UserError
from harness.load import chat
from harness.load.config import model_config
from harness.load.identity import tokenizer_sha
from harness.load.model import Loaded, load
from harness.load.prompt_text import how_read, load_tokenizer
from harness.load.sentencepiece_ids import model_file, reference

sentencepiece = pytest.importorskip("sentencepiece")
pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

from sentencepiece_models import of_pieces, trained, write_model  # noqa: E402

CODE = "Complete:\n\ndef f(x):\n    if x:\n        return  x\n"
TEXTS = [
    *texts()[:3], CODE, "", " ", "  ", " one", "   one", "two  and   three    and     five", "Ünï 😀  two", "\n\n  x\t\ty",
    "\u2581 a", "a</s>b", "a</s> b", "</s>", " </s>", "</s>  b", "a </s><s>[INST] b", "<unk> x", "a<s></s>  b",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def loaded(yaml: Path) -> Loaded:
    return load(model_config(str(yaml)), dtype="float32")


def slow_ids(data: bytes, text: str, legacy: bool) -> list[int]:
    """Part by part, as the authors' tokenizer did, with sentencepiece's space before those parts that had it there."""
    model = pb2.ModelProto.FromString(data)
    found: list[int] = []
    for i, part in enumerate(part for part in re.split("(<unk>|<s>|</s>)", text) if part):
        model.normalizer_spec.add_dummy_prefix = legacy or i == 0
        of_part = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        found += [of_part.piece_to_id(part)] if part in ("<unk>", "<s>", "</s>") else of_part.encode(part)
    return found


# ---- a tokenizer.model alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_tokenizer_model_alone_gives_sentencepieces_ids(tmp_path: Path, legacy: bool | None) -> None:
    tokenizer = load_tokenizer(write_model(tmp_path, trained(), legacy))
    prompts = [
        fmt(system, turns)
        for fmt, system in ((chat.vicuna, chat.VICUNA_SYSTEM), (chat.llama2, chat.LLAMA_SYSTEM))
        for turns in ([("user", CODE)], [("user", CODE), ("assistant", f"Two  spaces:\n{CODE}"), ("user", " Again. ")])
    ]
    for text in (*TEXTS, *prompts):
        ids = slow_ids(trained(), text, legacy is not False)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids, text
        assert tokenizer(text).input_ids == [1, *ids]
    assert how_read(tokenizer) == "sentencepiece"


@pytest.mark.parametrize("legacy", [None, False])
def test_what_a_tokenizer_model_encodes_it_decodes(tmp_path: Path, legacy: bool | None) -> None:
    tokenizer = load_tokenizer(write_model(tmp_path, trained(), legacy))
    for text in (text for text in TEXTS if "<" not in text and "\u2581" not in text):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    emoji = tokenizer("a 😀", add_special_tokens=False).input_ids
    assert tokenizer.decode(emoji[:-1]) == "a \ufffd\ufffd\ufffd" and tokenizer.decode([2]) == "</s>"
    assert tokenizer.get_vocab() == {p.piece: i for i, p in enumerate(pb2.ModelProto.FromString(trained()).pieces)}


def test_the_settings_say_what_is_put_around_a_text(tmp_path: Path) -> None:
    folder = write_model(tmp_path, trained(), None)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_settings("vicuna") | {"add_bos_token": False, "add_eos_token": True})
    )
    ids = load_tokenizer(folder)("one").input_ids
    assert ids[0] != 1 and ids[-1] == 2


def test_without_sentencepiece_a_tokenizer_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"tokenizer.model is read by sentencepiece: `pip install sentencepiece protobuf`"):
        load_tokenizer(write_model(tmp_path, trained(), None))


@pytest.mark.parametrize("n_bytes", [0, 1000, -400])
def test_a_spoilt_tokenizer_model_is_refused(tmp_path: Path, n_bytes: int) -> None:
    folder = write_model(tmp_path, trained()[:n_bytes], None)
    with pytest.raises(UserError, match=r"tokenizer.model is truncated or altered: "):
        load_tokenizer(folder)
    assert reference(folder, load_tokenizer(write_model(tmp_path / "whole", trained(), None))) is None


def test_tiktokens_file_of_that_name_is_left_to_transformers(tmp_path: Path) -> None:
    assert model_file(write_model(tmp_path, b"IQ== 0\nIg== 1\n", None)) is None


# ---- a target that has one ------------------------------------------------------------------------------------------


def with_model(folder: Path, family: str, reverse: bool = False) -> Path:
    """A family's tiny member and, beside its tokenizer.json, a tokenizer.model of the same pieces -> its YAML.

    reverse: the scores say that the last merges come first.
    """
    yaml = make(folder, family)
    vocab = json.loads((folder / "target" / "tokenizer.json").read_text())["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.__getitem__)
    scores = [float(i if reverse else -i) for i in range(len(pieces))]
    (folder / "target" / "tokenizer.model").write_bytes(of_pieces(pieces, scores))
    return yaml


VANILLA = "--method vanilla --method pld --task gsm8k --trees --model"


def test_vicunas_layout_runs_on_sentencepieces_ids_and_is_another_target(tmp_path: Path) -> None:
    yaml = with_model(tmp_path / "model", "vicuna", reverse=True)
    folder = yaml.parent / "target"
    (folder / "tokenizer.json").unlink()
    model = loaded(yaml)
    prompt = model.render([("user", CODE)])
    assert model.encode(prompt) == [1, *slow_ids((folder / "tokenizer.model").read_bytes(), prompt, True)]
    records = measured(tmp_path / "out", VANILLA, yaml)
    assert len(records) == 2 and all(r["n_special"] == 1 for r in records)
    assert model.identity.tokenizer == tokenizer_sha(folder, "sentencepiece") != tokenizer_sha(folder)


@pytest.mark.parametrize(("family", "mark"), [("vicuna", "</s>"), ("llama2", "</s>"), ("llama3", "<|eot_id|>")])
def test_an_answer_that_spells_a_special_token_out_goes_on_without_it_as_the_authors_did(
    tmp_path: Path, family: str, mark: str
) -> None:
    model = loaded(make(tmp_path, family))

    def ids(answer: str, question: str = "Two?") -> list[int]:
        return model.encode(model.render([("user", "One?"), ("assistant", answer), ("user", question)]))

    assert ids(f" It ends with{mark} here.{mark}") == ids("It ends with here.")
    token = model.tokenizer.convert_tokens_to_ids(mark)
    assert ids("It ends.", f"What is {mark} for?").count(token) == ids("It ends.").count(token) + 1  # questions stay as they are


@pytest.mark.parametrize("family", ["vicuna", "llama2"])
def test_a_tokenizer_json_that_differs_from_the_tokenizer_model_is_refused(tmp_path: Path, family: str) -> None:
    out = tmp_path / "out"
    same = with_model(tmp_path / "same", family)
    assert measured(out, VANILLA, same)
    if family == "llama2":  # transformers puts no space before a space; no prompt of the paper's begins with one
        with pytest.raises(UserError, match="tiny-llama2: a prompt has other token ids"):
            loaded(same).encode(" one")
    yaml = with_model(tmp_path / "other", family, reverse=True)
    refused(run(tmp_path / "none", VANILLA, yaml), "has other token ids than sentencepiece gives", "at place", "in place of")
    assert not (tmp_path / "none" / "records.jsonl").read_bytes()
    refused(harness("verify --level quick --model", yaml, "--out", tmp_path / "audit"), "has other token ids than sentencepiece")


def test_the_prompt_and_the_first_other_id_are_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.load import sentencepiece_ids

    yaml, out, real = with_model(tmp_path / "model", "llama2"), tmp_path / "out", sentencepiece_ids.reference

    def other_on_questions(*where: Any) -> Any:
        ids = real(*where)
        assert ids is not None
        return lambda text: [*ids(text)[:5], 7, *ids(text)[6:]] if "share" in text and "One" not in text else ids(text)

    monkeypatch.setattr(sentencepiece_ids, "reference", other_on_questions)
    for overflow in ("error", "skip"):
        outcome = run(out, VANILLA, yaml, "--on-overflow", overflow)
        refused(outcome, "model tiny-llama2: prompt ", " turn 1 has other token ids", "at place 5 ", "in place of 7 ('<0x04>')")
    assert not (out / "records.jsonl").read_bytes()


# ---- a tokenizer.json of the time -----------------------------------------------------------------------------------


def test_a_legacy_tokenizer_json_puts_its_space_before_a_space_too(tmp_path: Path) -> None:
    yaml = with_model(tmp_path / "model", "vicuna")
    folder = yaml.parent / "target"
    tokenizer = load_tokenizer(folder)
    for text in (" one", "a</s> b", "  x"):
        ids = slow_ids((folder / "tokenizer.model").read_bytes(), text, True)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids, text
    assert how_read(tokenizer) == "begins every part"


def test_answers_are_cleaned_up_only_where_the_settings_ask_for_it(tmp_path: Path) -> None:
    yaml = make(tmp_path / "model", "llama3")
    file = yaml.parent / "target" / "tokenizer_config.json"
    said = json.loads(file.read_text())
    for asked in (None, False, True):
        file.write_text(json.dumps(said | ({} if asked is None else {"clean_up_tokenization_spaces": asked})))
        model = loaded(yaml)
        ids = model.encode_text("So , it 's one . two  ?")
        assert model.decode(ids) == ("So, it's one. two ?" if asked else "So , it 's one . two  ?")
        assert "".join(map(model.piece, ids)) == "So , it 's one . two  ?"
        assert how_read(model.tokenizer) == ("cleans up" if asked else "")
        folder = yaml.parent / "target"
        assert (model.identity.tokenizer == tokenizer_sha(folder)) is not bool(asked)


def test_a_piece_has_all_its_spaces(tmp_path: Path) -> None:
    yaml = with_model(tmp_path / "model", "vicuna")
    folder = yaml.parent / "target"
    pieces = [p.piece for p in pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes()).pieces]
    pieces[-1] = "\u2581\u2581"
    (folder / "tokenizer.model").write_bytes(of_pieces(pieces, [0.0] * len(pieces)))
    (folder / "tokenizer.json").unlink()
    model = loaded(yaml)
    assert model.piece(len(pieces) - 1) == "  " and model.piece(pieces.index("\u2581")) == " "


def test_a_hub_tokenizer_that_counts_texts_is_read_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.exchange import imported

    kept = write_model(tmp_path / "hub", trained(), None)
    monkeypatch.setattr(imported, "from_hub", lambda repo, what, **how: kept)
    assert imported.token_counter("somebody/theirs")(CODE) == (len(slow_ids(trained(), CODE, True)), 1)
