"""README and docs: tables and intervals are those of the files in results/, links lead somewhere, commands exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from places import ROOT

from harness.cli import cli

README = ROOT / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "tasks/bundled/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "models/heads").glob("*/README.md")),
    *sorted((ROOT / "results").glob("**/README.md")),
]
COMMANDS = set(cli.list_commands(click.Context(cli)))
BLOCK = re.compile(r"<!-- begin .*?<!-- end -->", re.DOTALL)
NUMBER = r"([+-]?\d[\d.]*)[×%]?"
INTERVAL = re.compile(rf"\[{NUMBER}, {NUMBER}\]")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """The names of a document's headings, as links give them."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(path: Path) -> str:
    """A document without its copied tables and its blocks of code, on one line."""
    lines = BLOCK.sub("", text_of(path)).splitlines()
    return " ".join(line for line in lines if not line.startswith("    "))


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def readme_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "scripts/readme.py"), *arguments], capture_output=True, text=True)


def test_the_tables_in_documents_are_those_of_the_files_they_name() -> None:
    assert all("<!-- begin results/" in text_of(path) for path in (README, ROOT / "docs/results.md"))
    done = readme_script("--check")
    assert done.returncode == 0, f"run `python scripts/readme.py` and read the diff: {done.stdout}{done.stderr}"


def test_a_table_is_cut_to_the_section_rows_and_columns_asked_for() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from readme import tables_of
    finally:
        sys.path.pop(0)
    first = "### m, T = 0\n\n| method | τ | c |\n| :-- | --: | --: |\n| a | 1 | 2 |\n| b | 3 | 4 |\n\nnote\n\n"
    text = first + "### m, T = 1\n\n| method |\n| - |\n"
    wanted = {"section": "T = 0", "rows": "b,a", "as": "B,A", "columns": "method,c", "titles": "name,cost", "headings": "no"}
    assert tables_of(text, wanted) == "| name | cost |\n| :-- | --: |\n| B | 4 |\n| A | 2 |\n"
    assert tables_of(text, {"section": "T = 1"}) == "**m, T = 1**\n\n| method |\n| - |\n"
    for lacking in ({"section": "T = 2"}, {"section": "T = 0", "rows": "c"}, {"section": "T = 0", "columns": "speed"}):
        with pytest.raises(ValueError, match="no (table|row|column)"):
            tables_of(text, lacking)


@pytest.mark.parametrize("path", [README, ROOT / "docs/results.md"], ids=names)
def test_every_interval_in_the_text_stands_in_a_table_of_results(path: Path) -> None:
    known = {pair for file in (ROOT / "results").rglob("*.md") for pair in INTERVAL.findall(text_of(file))}
    told = INTERVAL.findall(prose(path))
    assert told and [pair for pair in told if pair not in known] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_every_link_to_a_file_leads_to_one(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(path)):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_every_command_named_exists(path: Path) -> None:
    # the change log speaks of the past, too
    named = set(re.findall(r"^    harness ([a-z-]+)", text_of(path), flags=re.MULTILINE))
    named |= set(re.findall(r"`harness ([a-z-]+)", re.sub(r"\s+", " ", text_of(path))))
    assert named <= COMMANDS


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_every_option_shown_is_one_of_its_command(path: Path) -> None:
    text = text_of(path).replace("\\\n", " ")  # a line that goes on in the next
    shown = re.findall(r"^    harness ([a-z-]+)([^#\n]*)", text, flags=re.MULTILINE) + re.findall(
        r"`harness ([a-z-]+)([^`]*)`", text
    )
    for name, words in shown:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        parts = words.split()
        if isinstance(command, click.Group) and parts:
            command = command.get_command(click.Context(command), parts[0]) or command
        assert set(re.findall(r"(?<=\s)--[a-z-]+", words)) <= options_of(command), f"harness {name}{words}"


def test_readme_names_every_command_and_every_document_and_is_short() -> None:
    text = text_of(README)
    assert {command for command in COMMANDS if f"harness {command}" not in text} == set()
    assert {p.name for p in (ROOT / "docs").glob("*.md") if f"docs/{p.name}" not in text} == set()
    assert len(text.splitlines()) <= 150


def test_the_page_of_file_formats_names_every_field_and_every_column() -> None:
    page = text_of(ROOT / "docs/file_formats.md")
    named = set(re.findall(r"`(\w+)`", page))
    schema = json.loads(text_of(ROOT / "harness/ledger/record.schema.json"))["properties"]
    fields = {*schema, *schema["trace"]["properties"], *schema["foreign"]["properties"]}
    columns = set()
    for file in (ROOT / "results/smollm2-135m-claims").glob("*/*.csv"):
        if file.parent.name in ("tables", "claims"):
            columns |= set(text_of(file).split("\n", 1)[0].split(","))
    ends = r"_(low|high|no_loops|no_loop|confirmed|source)$"
    plain = {column for column in columns if "(" not in column and not column.startswith("six-task mean ")}
    while plain != (shorter := {c if c in named else re.sub(ends, "", c) for c in plain}):
        plain = shorter
    assert len(plain) > 60 and sorted((fields | plain) - named) == []
