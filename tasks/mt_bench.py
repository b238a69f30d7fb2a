"""MT-bench: open-ended questions in eight categories. The second turn builds on the answer to the first."""

from __future__ import annotations

from tasks.base import HubSpec, Prompt, Row, Task


def to_prompt(row: Row, index: int) -> Prompt:
    return Prompt(f"mt_bench/{row['prompt_id']}", tuple(row["prompt"]), row["category"], tuple(row["reference"] or ()))


TASK = Task(
    name="mt_bench",
    title="MT-bench",
    line="open-ended questions of two turns in eight categories",
    n_turns=2,
    paper_folder="mt_bench",
    to_prompt=to_prompt,
    hub=HubSpec("HuggingFaceH4/mt_bench_prompts", None, "train", revision="e3a795c5e9a82ee40611c416b8a7786c73198991"),
)
