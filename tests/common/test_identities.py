"""How identities of weights are shown: none is cut so that two become one."""

from __future__ import annotations

import pytest

from harness.common.identities import shown_id
from harness.common.plain_names import made_plain
from harness.metrics.groups import weights_line

COMMIT = "e9149a12809580e8602995856f8098ce973d1080"


@pytest.mark.parametrize(
    ("identity", "shown"),
    [
        ("8928" * 16, "8928" * 4),
        (f"meta-llama/Llama-2-70b-chat-hf@{COMMIT}", "meta-llama/Llama-2-70b-chat-hf@e9149a12"),
        (f"meta-llama/Llama-2-70b-chat-hf@{COMMIT} unchecked 0123456789abcdef",
         "meta-llama/Llama-2-70b-chat-hf@e9149a12 unchecked 0123456789abcdef"),
        ("yuhuili/EAGLE-llama2-chat-70B@main", "yuhuili/EAGLE-llama2-chat-70B@main"),
        ("short", "short"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_hash_is_cut_and_a_repository_is_not(identity: str, shown: str) -> None:
    assert shown_id(identity) == shown


def test_two_sizes_of_a_model_and_two_commits_are_told_apart_in_a_tables_header_and_in_file_names() -> None:
    sizes = [f"meta-llama/Llama-2-{size}-chat-hf@{COMMIT}" for size in ("7b", "70b")]
    commits = [f"meta-llama/Llama-2-7b-chat-hf@{commit}" for commit in (COMMIT, COMMIT[::-1])]
    assert weights_line(sizes[1], [("eagle2", "ab" * 32)]) == (
        "Weights: target meta-llama/Llama-2-70b-chat-hf@e9149a12; eagle2 abababababababab"
    )
    for two in (sizes, commits):
        assert len({weights_line(one, []) for one in two}) == len({made_plain(shown_id(one, 8)) for one in two}) == 2
