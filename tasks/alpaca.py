"""Alpaca: short instructions of every kind."""

from __future__ import annotations

from tasks.base import HubSpec, Prompt, Row, Task


def to_prompt(row: Row, index: int) -> Prompt:
    # The instruction alone, as in the paper's set, also where the row has an input.
    return Prompt(f"alpaca/train/{index}", (row["instruction"],), reference=(row["output"],))


TASK = Task(
    name="alpaca",
    title="Alpaca",
    line="short instructions of every kind",
    paper_folder="alpaca",
    to_prompt=to_prompt,
    hub=HubSpec("tatsu-lab/alpaca", None, "train", revision="dce01c9b08f87459cf36a430d809084718273017"),
)
