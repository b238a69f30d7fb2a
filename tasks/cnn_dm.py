"""CNN/DailyMail: summarise a news article. The longest prompts of the six."""

from __future__ import annotations

from tasks.base import HubSpec, Prompt, Row, Task


def to_prompt(row: Row, index: int) -> Prompt:
    return Prompt(f"cnn_dm/test/{index}", (f"Summarize: {row['article']}",), "summarization", (row["highlights"],))


TASK = Task(
    name="cnn_dm",
    title="CNN/DM",
    line="news articles to summarise",
    paper_folder="sum",
    to_prompt=to_prompt,
    hub=HubSpec("abisee/cnn_dailymail", "3.0.0", "test", revision="96df5e686bee6baa90b8bee7c28b81fa3fa6223d"),
)
