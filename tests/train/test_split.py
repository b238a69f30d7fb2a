"""Held-out dialogues in shards: whatever is cut from a dialogue, or copies one, lies on one side."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from places import TINY
from tiny_model import shared_tiny_model

from harness.train import pipeline
from harness.train.data import read_shards
from harness.train.request import TrainRequest
from harness.train.texts import Lengths
from tasks.sharegpt import HELD_ONE_IN, Dialogue, Split, split

LATER = "Please explain in some more detail what you said about {}, with one example for each of its parts."


def said(tag: str, *values: str) -> list[dict]:
    """Turns by turns of a user and an assistant; `tag` is in each, so that a shard shows whose text it holds."""
    return [{"from": ("human", "gpt")[i % 2], "value": f"{value} ({tag})"} for i, value in enumerate(values)]


def of_dialogue(name: str, tag: str, thing: str, *, opens_as: str = "") -> list[Dialogue]:
    """A dialogue that was cut in two: an exchange, and a later one."""
    opening = said(
        tag, f"How does the {thing} of a house work, and who made the first?", f"A {thing} works by itself, as all do."
    )
    if opens_as:
        opening[0]["value"] = opens_as
    rest = said(tag, LATER.format(f"the {thing}"), f"As I said before, a {thing} has a first part and then a second part.")
    return [{"id": f"{name}_0", "conversations": opening}, {"id": f"{name}_7", "conversations": rest}]


def dialogues() -> list[Dialogue]:
    """120 dialogues of two parts each, and a copy of the first half of each one that is held, which goes on otherwise."""
    made = [x for i in range(120) for x in of_dialogue(f"dialogue{i}", f"tag{i}x", f"{'abcdefghijkl'[i % 12] * 3}{i} machine")]
    held = [item for item in split(made).held if item["id"].endswith("_0")]
    for item in held:
        name = next(f"copy{n}-{item['id']}" for n in range(1000) if not split([{"id": f"copy{n}-{item['id']}"}]).held)
        tag = item["id"].removeprefix("dialogue").removesuffix("_0")
        made += of_dialogue(
            name, f"tag{tag}x", "thing of which nobody else has spoken", opens_as=item["conversations"][0]["value"]
        )
    return made


def tags_of(texts: list[str]) -> set[str]:
    return {tag for text in texts for tag in re.findall(r"tag\d+x", text)}


@pytest.mark.parametrize("keep", [False, True])
def test_no_dialogue_is_in_shards_of_both_sides(keep: bool, tmp_path: Path) -> None:
    loaded, items = shared_tiny_model("float64").loaded, dialogues()
    request = TrainRequest("eagle", str(TINY), tmp_path / "out", tmp_path, 10**6 if not keep else 60, 10**6, tokens=0)
    texts = pipeline.texts_of(loaded, split(items), [], request, tmp_path, Lengths(700, 4), say=lambda text: None)
    pipeline.make_answers(loaded, texts, 0, 64, keep, say=lambda text: None)
    pipeline.complete_shards(loaded, texts, keep)
    held, *trained = ([loaded.tokenizer.decode(c.ids) for c in read_shards(part.folder, 64, None if keep else lambda ids: [])]
                      for part in texts.parts)  # fmt: skip
    of_held, of_answers, of_texts = tags_of(held), *map(tags_of, trained)
    assert len(of_held) > 3 and len(of_answers) > (15 if keep else 60) and len(of_texts) > 60
    assert not of_held & (of_answers | of_texts)


def test_a_split_by_sequence_would_leak() -> None:
    """So the dialogues above are ones that the test can fail on."""

    def is_held(item: Dialogue) -> bool:
        return hashlib.sha256(str(item["conversations"]).encode()).digest()[0] % HELD_ONE_IN == 0

    by_sequence = Split(
        [item for item in dialogues() if not is_held(item)], [item for item in dialogues() if is_held(item)]
    )  # fmt: skip
    both = [
        tags_of([turn["value"] for item in side for turn in item["conversations"]])
        for side in (by_sequence.training, by_sequence.held)
    ]
    assert both[0] & both[1]


def test_the_rest_of_a_dialogue_that_copies_a_held_one_is_left_out_with_it() -> None:
    """Its second part repeats nothing: it goes because of the first."""
    items = dialogues()
    copies = [item for item in items if item["id"].startswith("copy")]
    assert len(copies) >= 8 and {item["id"][-2:] for item in copies} == {"_0", "_7"}
    assert not {item["id"] for item in copies} & {item["id"] for item in split(items).training}
