"""What an audit said of each cell of a ledger, in a word for the tables."""

from __future__ import annotations

import json
from pathlib import Path

from harness.common.errors import UserError
from harness.ledger.checked import is_text

AUDIT = Path("audit") / "lossless.json"  # in a folder of records: each method's word in one line
PAGE = "audit.md"  # beside it: what the words rest on


def audit_pages(folder: Path) -> tuple[str, ...]:
    """The audits' pages that are there, as paths in FOLDER: `audit/audit.md`, or `audit/MODEL/audit.md` each."""
    root = Path(folder) / AUDIT.parent
    return tuple(str(p.relative_to(folder)) for p in (root / PAGE, *sorted(root.glob(f"*/{PAGE}"))) if p.is_file())


def audits_of(folder: Path) -> dict[str, dict[str, str]]:
    """What `harness verify --out FOLDER/audit` found: model -> method -> its word; nothing where it was not run. Where there are
    several models, each one's audit is in a folder of its own, FOLDER/audit/MODEL.

    Raises:
        UserError: a file there is something else.
    """
    audits: dict[str, dict[str, str]] = {}
    for file in (Path(folder) / AUDIT, *sorted((Path(folder) / AUDIT.parent).glob(f"*/{AUDIT.name}"))):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not (is_text(found["model"]) and all(map(is_text, (*found["methods"], *found["methods"].values())))):
                raise TypeError("a name or a word is no text")
            audits[found["model"]] = dict(found["methods"])
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(f"{file} is not what `harness verify` writes ({e}); run it again") from None
    return audits
