"""The harness: loads a model, runs methods over tasks, writes records, and derives every number from the records.

From Python: `load_model`, `measure`, `RunRequest`, `read`, `summarise`, `verify`; docs/api.md tells of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RunRequest", "UserError", "load_model", "measure", "read", "summarise", "verify"]

if TYPE_CHECKING:
    from harness.api import load_model, measure, read, summarise, verify
    from harness.common.errors import UserError
    from harness.run.request import RunRequest


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: what they need takes seconds to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harness.common.errors import UserError
    from harness.common.shadow import check_packages

    if name == "UserError":
        return UserError
    check_packages()
    from harness import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
