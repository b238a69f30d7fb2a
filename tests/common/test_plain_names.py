"""Names that form paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.common.errors import UserError
from harness.common.plain_names import MOST, made_plain, place, plain_name, plain_parts

NAMES = ["vicuna-7b", "eagle2", "mt_bench", "paper+total=24", "v1.3", "_", "7", "a" * MOST]
NOT_NAMES = [
    "", ".", "..", "../x", "../../x", "a/b", "a\\b", "/etc", "a..b", ".hidden", "-r", "--option", "a.", "a\n", "a\nb", "\0",
    "a\x1b[0m", "a|b", "<b>", "a`b`", "a b", " ", "a\u202eb", "é", "CON", "nul.json", "a" * (MOST + 1), None, 3, True, ["a"],
    {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    assert plain_name("model", name) == name


@pytest.mark.parametrize("name", NOT_NAMES, ids=repr)
def test_what_is_no_plain_name_is_refused_in_one_line(name: object) -> None:
    with pytest.raises(UserError, match="model name .* is no plain name") as refused:
        plain_name("model", name)
    assert "\n" not in str(refused.value) and str(refused.value).isprintable() and len(str(refused.value)) < 500


def test_a_place_lies_in_its_folder() -> None:
    assert place(Path("cache"), "model", "a.b", suffix=".json") == Path("cache/a.b.json")
    assert place(Path("out"), "task", "gsm8k", "tiny-eagle2") == Path("out/gsm8k/tiny-eagle2")


@pytest.mark.parametrize("name", NOT_NAMES, ids=repr)
def test_no_place_is_made_of_another_name(name: object) -> None:
    with pytest.raises(UserError):
        place(Path("cache"), "model", "fine", name)


@pytest.mark.parametrize("text", [t for t in NOT_NAMES if isinstance(t, str)], ids=repr)
def test_a_plain_name_can_be_made_of_any_text(text: str) -> None:
    assert plain_name("file", made_plain(text)) and made_plain("tiny-paper+total=24") == "tiny-paper+total=24"


def test_long_texts_that_differ_have_names_that_differ() -> None:
    assert made_plain("a" * 200 + "b") != made_plain("a" * 200 + "c")


def test_names_with_slashes_are_plain_part_by_part() -> None:
    assert plain_parts("repository", "lmsys/vicuna-7b-v1.3") == ("lmsys", "vicuna-7b-v1.3")
    for name in ("../x", "a/../b", "/a", "a/", "a//b", "a b c", "-r/x", "a/b/c/d/e/f/g/h/i", 3, None):
        with pytest.raises(UserError, match="not plain names between slashes"):
            plain_parts("repository", name)
