"""README's tables are the files' tables, its links lead somewhere, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys

from places import ROOT

from harness.cli import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_in_readme_are_those_of_the_files_it_names() -> None:
    assert "<!-- begin results/" in README
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "readme.py"), "--check"])
    assert done.returncode == 0, "README.md and results/ differ: run `python scripts/readme.py` and read the diff"


def test_every_link_to_a_file_leads_to_one() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_named_exists() -> None:
    named = set(re.findall(r"^    harness (\w+)", README, flags=re.MULTILINE)) | set(re.findall(r"`harness (\w+)", README))
    assert named <= set(cli.commands) and {"run", "table", "plot", "list", "train"} <= named
