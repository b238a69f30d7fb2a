"""Reading JSON that somebody else wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.common.errors import UserError
from harness.common.files import read_json


def written(folder: Path, content: bytes) -> Path:
    file = folder / "config.json"
    file.write_bytes(content)
    return file


def test_a_byte_order_mark_is_no_fault_of_a_json_file(tmp_path: Path) -> None:
    assert read_json(written(tmp_path, b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"9" * 5000, "digits"),
        (b"", "not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_that_names_the_file(tmp_path: Path, content: bytes, why: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(UserError, match=why) as refused:
        read_json(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*gone.json"):
        read_json(tmp_path / "gone.json")
