"""Reading a YAML that somebody else wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.common.errors import UserError
from harness.common.yaml_file import read_yaml

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))


def read(folder: Path, text: str | bytes) -> object:
    file = folder / "x.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file)


def test_what_is_meant_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa: {b: [1, 2.5, x, null, true, 0, '1:10', 0.5]}\n") == {
        "a": {"b": [1, 2.5, "x", None, True, 0, "1:10", 0.5]}
    }
    assert read(tmp_path, "x: &d {p: 1}\ny: {<<: *d, q: 2}\nz: *d\n") == {"x": {"p": 1}, "y": {"p": 1, "q": 2}, "z": {"p": 1}}
    assert read(tmp_path, "") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\nb: 2\na: 3\n", r"x.yaml:3: key 'a' is given twice, first in line 1"),
        ("a:\n  b: 1\n  'b': 2\n", r"x.yaml:3: key 'b' is given twice, first in line 2"),
        ("- {c: 1, c: 1}\n", "x.yaml:1: key 'c' is given twice"),
        ("1: 2\n", "key '1' is no text"),
        ("a: 1\non: 1\n", "x.yaml:2: key 'on' is no text"),
        ("? [a]\n: 1\n", "key a list or a mapping is no text"),
        ("a: .nan\n", "x.yaml:1: .nan is no finite number"),
        ("a: [1, -.inf]\n", "-.inf is no finite number"),
        ("a: 1.0e+999\n", "1.0e.999 is no finite number"),
        ("a: " + "9" * 200, "x.yaml:1: a number of 200 digits"),
        ("a: " + "9" * 10_000, "a number of 10000 digits"),
        ("b: 1\na: 1:10\n", "x.yaml:2: 1:10 is a number to base 60 or 8 in YAML; quote it"),
        ("a: [1:10.5]\n", "1:10.5 is a number to base 60"),
        ("a: -010\n", "-010 is a number to base 60 or 8"),
        (BOMB, "x.yaml:.: more than 10000 values"),
        ("a: &x [*x]\n", "it is a part of itself"),
        ("[" * 1200, "nested too deeply"),
        ("a: 2024-99-99\n", "month must be in 1..12"),
        ("a: !!bool x\n", "not YAML that can be read here"),
        ("a: !!python/object/apply:os.system [x]\n", "is not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "is not YAML: expected a single document"),
        ("a: \x07\n", "is not YAML"),
        (b"a: \xff\n", "is not UTF-8 text"),
        ("a: b" * (1 << 19), "at most 1048576 are read"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_all_else_is_one_line_with_its_place(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(UserError, match=why) as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
