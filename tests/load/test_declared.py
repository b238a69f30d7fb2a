"""A model's YAML against the model's own files, and what its tokenizer and chat template make of a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import harness, isolate, refused, run, tiny_copy
from places import TINY
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from harness.common.errors import UserError
from harness.load import prompt_text
from harness.load.config import known_models, model_config
from harness.load.declared import longest_context
from harness.load.model import Loaded, load

VANILLA = "--method vanilla --task gsm8k --model"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def loaded(yaml: Path) -> Loaded:
    return load(model_config(str(yaml)), "float32", drafters=())


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({k: v for k, v in {**values, **changes}.items() if v is not ...}))


# ---- stop ids and context -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "generation", "why"),
    [
        ({"stop_ids": "[0, 2, 384]"}, {}, "stop_ids [384] are outside its vocabulary of 384 tokens"),
        ({"stop_ids": "[-1, 2]"}, {}, "stop_ids"),
        ({"stop_ids": "[0]"}, {}, "stop_ids [0] lack [2], with which "),
        ({"stop_ids": "[]"}, {}, "stop_ids [] lack [2], with which "),
        ({}, {"eos_token_id": [2, 5, 7]}, "stop_ids [0, 2] lack [5, 7], with which "),
        ({}, {"eos_token_id": "two"}, "eos_token_id is 'two'; it must be a token id or a list of them"),
        ({"context_length": "2561"}, {}, "context_length 2561 is over the 2560 positions of "),
    ],
)
def test_a_yaml_that_contradicts_the_models_files_is_refused(
    yaml: dict[str, str], generation: dict[str, Any], why: str, tmp_path: Path
) -> None:
    model = tiny_copy(tmp_path / "model", **yaml)
    edit(model.parent / "target" / "generation_config.json", **generation)
    refused(run(tmp_path / "out", VANILLA, model), why)


@pytest.mark.parametrize("text", ["{", "[2]", "[" * 100_000])
def test_a_generation_config_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model")
    (model.parent / "target" / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config\.json"):
        loaded(model)


def test_stop_ids_that_end_nothing_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_copy(tmp_path / "model", stop_ids="[0]")
    (model.parent / "target" / "generation_config.json").unlink()
    loaded(model)
    assert capsys.readouterr().err == "model tiny: its config.json calls [2] end of text, which is not among stop_ids [0]\n"
    model.write_text(model.read_text().replace("stop_ids: [0]", "stop_ids: []"))
    loaded(model)
    assert capsys.readouterr().err == "model tiny: its YAML has no stop_ids: every answer runs to its budget\n"


def test_more_stop_ids_than_the_model_names_and_a_shorter_context_are_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded(tiny_copy(tmp_path / "model", stop_ids="[0, 2, 9]", context_length="128"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        (None, 4096), ({"rope_type": "default"}, 4096), ({"rope_type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
    ],
)  # fmt: skip
def test_a_context_may_be_as_long_as_the_rotary_table_was_stretched(rope: dict[str, Any] | None, longest: int) -> None:
    assert longest_context(SimpleNamespace(max_position_embeddings=4096, rope_parameters=rope)) == longest
    assert longest_context(SimpleNamespace()) is None


def test_every_model_of_this_repository_has_stop_ids_and_a_context_of_its_family() -> None:
    """By what the families' own files say: none of those weights are here."""
    ends = {"llama2": {2}, "vicuna": {2}, "llama3": {128001, 128009}, "smollm2": {0, 2}, "digits": {2}}
    contexts = {"llama2": 4096, "vicuna": 2048, "llama3": 8192, "smollm2": 8192, "digits": 1280}
    for name in known_models():
        config, family = model_config(name), name.split("-")[0]
        assert set(config.stop_ids) == ends[family] and config.context_length == contexts[family]


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model")
    folder = model.parent / "target"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<|extra|>")])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"has token '<\|extra\|>' with id 384, the model only 384 embeddings"):
        loaded(model)


# ---- BOS of plain text ----------------------------------------------------------------------------------------------


def with_specials(folder: Path, single: str) -> None:
    """Have the tokenizer of a folder put special tokens around a text, as `single` says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|im_start|>"
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("single", "before"), [("<|im_start|> $A", [1]), ("<|im_start|> $A <|im_end|>", [1]), ("$A <|im_end|>", []), ("$A", [])]
)
def test_plain_text_keeps_the_bos_that_its_tokenizer_puts_before_it(single: str, before: list[int], tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model", template="plain")
    with_specials(model.parent / "target", single)
    plain = loaded(model)
    for text in ("One?", " Two\n\nthree", "x"):
        assert plain.encode(plain.render([("user", text)])) == [*before, *plain.encode_text(text)]
        assert 1 not in plain.encode_text(text)


def test_a_rendered_template_is_not_given_a_second_bos(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model")
    with_specials(model.parent / "target", "<|im_start|> $A")
    chat = loaded(model)
    ids = chat.encode(chat.render([("user", "One?")]))
    assert ids[0] == 1 and ids[1] != 1


# ---- chat templates -------------------------------------------------------------------------------------------------

FINE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (FINE + "{{ strftime_now('%d %b %Y') }}", "prints the date or is drawn at random"),
        (
            "{% set date = strftime_now('%j') if not date_string is defined else date_string %}{{ date }}" + FINE,
            "prints the date",
        ),
        ("{% if messages | length > 1 %}{{ strftime_now('%Y') }}{% endif %}" + FINE, "prints the date"),
        (FINE + "{{ range(99999) | list | random }}", "drawn at random"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + FINE, "takes over 0.3 s: it loops"),
        ("{% for a in range(10 ** 12) %}{% endfor %}" + FINE, "cannot render a dialogue: Range too big"),
        ("{{ tools | length }}" + FINE, "cannot render a dialogue: object of type 'NoneType' has no len()"),
        ("{{ raise_exception('no system') }}", "cannot render a dialogue: no system"),
        (
            "{% if messages | length > 1 %}{{ raise_exception('once') }}{% endif %}" + FINE,
            "cannot render a dialogue: once",
        ),
        ("{{ messages[7].content }}", "cannot render a dialogue: "),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot render a dialogue: maximum recursion depth"),
        ("{% for", "cannot render a dialogue: "),
    ],
)
def test_a_chat_template_that_does_not_render_the_same_every_day_is_refused(
    template: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_text, "RENDER_S", 0.3)
    model = tiny_copy(tmp_path / "model")
    (model.parent / "target" / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError) as error:
        loaded(model)
    assert why in str(error.value) and "\n" not in str(error.value) and "the chat template in " in str(error.value)


def test_a_template_that_knows_of_dates_and_does_not_print_them_is_fine(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model")
    template = "{% set today = strftime_now('%d') %}{% if date_string is not defined %}{{ '26 Jul 2024' }}{% endif %}" + FINE
    (model.parent / "target" / "chat_template.jinja").write_text(template)
    assert loaded(model).render([("user", " One?")]) == "26 Jul 2024 One?"


def test_a_template_that_prints_the_date_is_refused_from_the_command_line(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model")
    (model.parent / "target" / "chat_template.jinja").write_text("{{ strftime_now('%d') }}")
    refused(run(tmp_path / "out", VANILLA, model), "prompts would differ from day to day")
    assert harness(f"run --source bundled --dry-run {VANILLA} {TINY}").code == 0
