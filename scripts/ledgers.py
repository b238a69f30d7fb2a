"""Makes the ledgers of results/ again, each by the commands that results/ledgers.yaml has for it, and the table of them.

    python scripts/ledgers.py                        # what there is, and how far it is made
    python scripts/ledgers.py NAME [NAME ...]        # run what was not run yet of these; stops at the first command that fails
    python scripts/ledgers.py --table [--check]      # fill the table of results/README.md, or only say whether it is filled

A command that was run stands in `made.json` of its folder with the commit, the machine and the time. Remove its entry to run it
anew. Nothing is run while tracked files are changed, but for those that such commands write: what is measured is the code of a
commit. `{out}` in a command is its ledger's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.common.files import write_file  # noqa: E402
from harness.common.machine import cpu_name  # noqa: E402

RESULTS = ROOT / "results"
WRITTEN = ("results", "models/*.tuned.json")  # by the commands; no code
BLOCK = re.compile(r"(?<=<!-- begin ledgers -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Made:
    """A command that was run. `seconds`: how long its last start took; `began`: ISO 8601."""

    command: str
    commit: str
    machine: str
    began: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """`by_clock`: it tells of times, and is measured while nothing else runs. `commands`: of a shell."""

    name: str
    holds: str
    by_clock: bool
    commands: tuple[str, ...]

    @property
    def file(self) -> Path:
        return RESULTS / self.name / "made.json"

    def made(self) -> dict[str, Made]:
        """By the command, as far as it is one of this ledger's."""
        found = [Made(**one) for one in json.loads(self.file.read_text(encoding="utf-8"))] if self.file.exists() else []
        return {one.command: one for one in found if one.command in self.commands}


def ledgers() -> list[Ledger]:
    """All of them, in the order in which they are made."""
    found = yaml.safe_load((RESULTS / "ledgers.yaml").read_text(encoding="utf-8"))
    return [Ledger(name, _line(about["holds"]), about["by_clock"], tuple(map(_line, about["commands"])))
            for name, about in found.items()]  # fmt: skip


def code_commit() -> str | None:
    """The commit of this checkout; None where it is none, or tracked files are changed that no command here writes."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":(exclude){path}" for path in WRITTEN))
    return git("rev-parse", "HEAD") if changed == "" else None


def _line(text: str) -> str:
    return " ".join(text.split())


def make(ledger: Ledger) -> None:
    """
    Raises:
        SystemExit: a command failed, or tracked files are changed.
    """
    for command in ledger.commands:
        made = ledger.made()
        if command in made:
            continue
        commit = code_commit()
        if commit is None:
            raise SystemExit(f"{ledger.name}: tracked files are changed, or this is no checkout: commit, then start again")
        print(f"{ledger.name}: {command}", flush=True)
        (RESULTS / ledger.name).mkdir(parents=True, exist_ok=True)
        began, at = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        words = command.replace("{out}", shlex.quote(str((RESULTS / ledger.name).relative_to(ROOT))))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with subprocess.Popen(["bash", "-euo", "pipefail", "-c", words], cwd=ROOT, env={**os.environ, "PATH": path}) as shell:
            try:
                status = shell.wait()
            except KeyboardInterrupt:  # the command has it, too, and ends as it does on Ctrl-C
                shell.wait()
                raise SystemExit(130) from None
        if status:
            raise SystemExit(f"{ledger.name}: status {status} of: {command}")
        entry = Made(command, commit[:7], cpu_name(), began, round(time.monotonic() - at, 1))
        write_file(ledger.file, json.dumps([*map(asdict, made.values()), asdict(entry)], indent=1) + "\n")


def table(found: Sequence[Ledger]) -> str:
    """Markdown: folder, what it holds, commit, machine, date and hours of each that was begun; then its commands."""
    if not any(ledger.made() for ledger in found):
        return "None of them has been made yet.\n"
    lines = ["| folder | what it holds | commit | machine | date | hours |", "|:--|:--|:--|:--|:--|--:|"]
    for ledger in found:
        if made := list(ledger.made().values()):
            commits, machines = (", ".join(dict.fromkeys(getattr(m, name) for m in made)) for name in ("commit", "machine"))
            hours = sum(m.seconds for m in made) / 3600
            told = f"{hours:.1f}" if hours >= 0.1 else "under 0.1"
            date, clock = max(m.began for m in made)[:10], "" if ledger.by_clock else "; no clock"
            lines.append(
                f"| [{ledger.name}](#{ledger.name}) | {ledger.holds}{clock} | {commits} | {machines} | {date} | {told} |"
            )
    for ledger in found:
        if made := list(ledger.made().values()):
            lines += ["", f"### {ledger.name}", "", *(f"    {m.command}    # {_took(m.seconds)}" for m in made)]
    return "\n".join(lines) + "\n\n"


def _took(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="ledgers to make")
    parser.add_argument("--table", action="store_true", help="fill the table of results/README.md")
    parser.add_argument("--check", action="store_true", help="with --table: change nothing; exit 1 where it is another")
    asked, found = parser.parse_args(), ledgers()
    if unknown := set(asked.names) - {ledger.name for ledger in found}:
        parser.error(f"no ledger {', '.join(sorted(unknown))}; there are: {', '.join(ledger.name for ledger in found)}")
    for ledger in found:
        if ledger.name in asked.names:
            make(ledger)
    if asked.table:
        page = RESULTS / "README.md"
        before = page.read_text(encoding="utf-8")
        after, n_filled = BLOCK.subn(lambda _: table(found), before)
        if not n_filled:
            raise SystemExit(f"{page} has no place for it: a line <!-- begin ledgers -->, then one <!-- end -->")
        if asked.check:
            return int(before != after)
        page.write_text(after, encoding="utf-8")
    elif not asked.names:
        for ledger in found:
            print(f"{ledger.name}: {len(ledger.made())} of {len(ledger.commands)} commands were run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
