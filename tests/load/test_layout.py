"""What a weights' file says of itself."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from harness.load.layout import stored_numbers, tensor_names, why_not_whole


def test_of_a_pickle_hardly_anything_is_read_to_see_that_it_has_no_header(tmp_path: Path) -> None:
    file = tmp_path / "medusa_lm_head.pt"
    with file.open("wb") as f:
        f.write(b"PK\x03\x04" + bytes(2) + b"\x01\x00")
        f.truncate(300 << 20)
    tracemalloc.start()
    try:
        assert stored_numbers(tmp_path) == 150 << 20
        (tmp_path / "model.safetensors").write_bytes(file.open("rb").read(1 << 16))
        assert why_not_whole(tmp_path / "model.safetensors") is not None and not tensor_names(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
