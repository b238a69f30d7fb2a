"""Whether `methods`, `tasks` and `models` are the harness's own packages, or folders of the user's in front of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from harness.common.errors import UserError

OURS = Path(__file__).resolve().parents[2]


def check_packages() -> None:
    """Raises UserError where another folder or file of that name comes first on Python's path."""
    for name in ("methods", "tasks", "models"):
        spec = importlib.util.find_spec(name)
        places = [Path(p).resolve() for p in (spec.submodule_search_locations or [spec.origin or "?"])] if spec else []
        if (OURS / name) not in places[:1]:
            other = f"{places[0]} stands in front of it" if places else "nothing of that name is on Python's path"
            raise UserError(f"the harness needs its own package {name!r} of {OURS}, but {other}; rename that or run elsewhere")
