"""Natural Questions: short questions that people typed into a search engine, asked without documents."""

from __future__ import annotations

from tasks.base import HubSpec, Prompt, Row, Task


def to_prompt(row: Row, index: int) -> Prompt:
    # The published questions are lower case and bare; the paper's set has a capital and a question mark on each.
    question = row["question"].strip()
    turn = question[:1].upper() + question[1:].rstrip(" ?") + "?"
    return Prompt(f"natural_questions/validation/{index}", (turn,), "qa", tuple(row["answer"]))


TASK = Task(
    name="natural_questions",
    title="Natural Ques.",
    line="short factual questions without documents",
    paper_folder="qa",
    to_prompt=to_prompt,
    # nq_open, not natural_questions: the latter is over 40 GB of web pages
    hub=HubSpec("google-research-datasets/nq_open", None, "validation", revision="5dd9790a83002ad084ddeb7c420dc716852c6f28"),
)
