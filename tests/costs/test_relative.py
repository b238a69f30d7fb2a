"""Tables of costs by name, by file, and by the hash of what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.common.errors import UserError
from harness.costs.relative import named, table_name
from harness.costs.table import as_json, read_all


def test_a_table_is_named_by_its_hash_and_another_hash_is_refused(tmp_path: Path) -> None:
    table = read_all(None)[0]
    name = table_name(table)
    stem, _, sha = name.rpartition("@")
    file = tmp_path / "me@home.json"
    file.write_text(as_json(table))
    for text in (name, stem, str(file), f"{file}@{sha}"):
        assert named(text) == name
    for text in (f"{stem}@{'0' * 12}", f"{file}@{'0' * 12}"):
        with pytest.raises(UserError, match=f"the table is another one now .*@{sha}"):
            named(text)
    with pytest.raises(UserError, match="no such file, and none of the known costs: gpu-radar"):
        named(f"{file}@home")
