"""The tasks' prompts that no training may see."""

from __future__ import annotations

import tasks
from harness.common.errors import UserError, say


def evaluation_prompts() -> dict[str, list[str]]:
    """`task/source` -> its prompts, for every task and source at hand: none may be in the training data.

    The hub is not asked. A source that is not here is left out: what was checked is said and recorded with the head.
    """
    out: dict[str, list[str]] = {}
    for name in tasks.names():
        for source in tasks.sources_of(name):
            try:
                if source != "hub":
                    found = tasks.load(name, source=source)
                    out[f"{name}/{source}"] = [turn for p in found.prompts for turn in p.turns]
            except UserError:
                continue
    return out


def checked_prompts(checked: dict[str, list[str]] | None = None) -> list[str]:
    """All texts of `evaluation_prompts`, with a warning where the paper's own are not among them."""
    checked = evaluation_prompts() if checked is None else checked
    missing = [name for name in tasks.names() if f"{name}/paper" not in checked]
    if missing:
        say(f"warning: the paper's prompts of {', '.join(missing)} are not here, so overlap with them is not checked")
    return [text for texts in checked.values() for text in texts]
