"""What `--format speculators` writes is what speculators' own models validated (`scripts/validate_speculators.sh`)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from places import TESTS
from published_heads import speculators_samples

FOUND = json.loads((TESTS / "data" / "speculators.json").read_text())
TOLERANCE = 1e-4  # of logits in float32


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What is written now, in the form of the validated sample."""
    made = {}
    for name, (config, tensors) in speculators_samples(tmp_path_factory.mktemp("own")).items():
        told = {key: [str(x.dtype).removeprefix("torch."), list(x.shape)] for key, x in tensors.items()}
        made[name] = {"config": json.loads(json.dumps(config)), "tensors": told}
    return made


def paths(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """The places of everything in a JSON value that holds nothing itself."""
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    if not inner:
        yield path
    for key, one in inner:
        yield from paths(one, *path, key)


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key] if (key in value if isinstance(value, dict) else isinstance(key, int) and key < len(value)) else None
    return value


def differing(a: Any, b: Any) -> list[tuple[str | int, ...]]:
    of_a, of_b = {*paths(a)}, {*paths(b)}
    return sorted((of_a ^ of_b) | {path for path in of_a & of_b if at(a, path) != at(b, path)}, key=str)


def test_the_sample_was_validated_by_the_version_that_is_written() -> None:
    assert FOUND["validated_by"]["speculators"] == "0.9.0"
    assert all(0 <= head["logits_off"] < TOLERANCE and not head["no_field_of_theirs"] for head in FOUND["heads"].values())


def test_what_is_written_now_is_key_by_key_what_was_validated(written: dict[str, dict[str, Any]]) -> None:
    assert written.keys() == FOUND["heads"].keys() and len(written) == 7
    for name, head in written.items():
        assert differing(head, {part: FOUND["heads"][name][part] for part in head}) == [], name


def test_every_key_that_is_spoilt_or_left_out_shows(written: dict[str, dict[str, Any]]) -> None:
    head = written["eagle3-fc_norm"]
    places = list(paths(head))
    assert len(places) > 60
    for path in places:
        for spoilt in ("spoilt", None):
            other = copy.deepcopy(head)
            holder = at(other, path[:-1])
            if spoilt is not None or isinstance(holder, list):
                holder[path[-1]] = spoilt
            else:
                del holder[path[-1]]
            assert path in differing(other, head)
