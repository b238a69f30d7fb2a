"""A ledger of two machines: each has rows of its own, with the numbers that it has alone; no ratio is of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import harness, isolate
from made_up_ledger import write_ledger
from made_up_records import measured, unmeasured
from make_ledger import ENV, keyed
from places import TINY

from harness.common.errors import UserError
from harness.common.names import SIX_TASKS
from harness.common.progress import Progress
from harness.exchange.export import export
from harness.ledger.ledger import Ledger, machine_label, read
from harness.paper.claims import claims_table
from harness.show.contents import Contents, read_contents
from harness.show.headline import headlines
from harness.show.page import Drawn, page
from harness.show.plots.data import panels_of, speedup_data
from harness.show.tables.all import TABLES
from harness.show.tables.two_folders import comparison_table

FAST, SLOW = ENV | {"cpu": "Fast CPU"}, ENV | {"cpu": "Slow CPU"}
N = 18  # conversations a task: the fast machine has every third


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def records(speed: float, samples: range, methods: tuple[str, ...] = ("vanilla", "eagle1", "eagle2")) -> list[Any]:
    """speed: of the machine. Its methods gain differently there, too."""
    gains = {"vanilla": 1.0, "eagle1": 1.5 + 0.2 * speed, "eagle2": 2.0 + 0.3 * speed}
    found = []
    for task in SIX_TASKS:
        for i in samples:
            for method in methods:
                steps = [1 + (i + j) % 3 for j in range(8)]
                ids = [*range(sum(steps) + len(steps)), 99 if method == "eagle2" and i % 4 == 0 else 98]
                found.append(measured(method, i, steps, wall_s=(3 + i % 5) / speed / gains[method], task=task, token_ids=ids,
                                      model="tiny", run=f"run {speed}"))  # fmt: skip
    return found


def write_two(folder: Path) -> Path:
    """Both machines' records of the same cells, in turns, as a driver gets them."""
    with Ledger(folder, several_machines=True) as ledger:
        fast, slow = ledger.write_env(FAST), ledger.write_env(SLOW)
        both = [(r, fast) for r in records(3.0, range(0, N, 3))] + [
            (r, slow) for i in (1, 2) for r in records(1.0, range(i, N, 3))
        ]
        for r, env in sorted(both, key=lambda pair: (pair[0]["task"], int(pair[0]["sample_id"]), pair[0]["method"])):
            ledger.append(keyed(r) | {"env": env})
    return folder


@dataclass(frozen=True)
class Folders:
    both: Contents
    alone: dict[str, Contents]  # by machine: of a ledger that has its records alone
    folders: tuple[Path, dict[str, Path]]


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("machines")
    alone = {
        machine_label(FAST): write_ledger(root / "fast", records(3.0, range(0, N, 3)), FAST),
        machine_label(SLOW): write_ledger(
            root / "slow", [r for i in range(N) if i % 3 for r in records(1.0, range(i, i + 1))], SLOW
        ),
    }
    both = write_two(root / "two")
    return Folders(contents_of(both), {name: contents_of(folder) for name, folder in alone.items()}, (both, alone))


def contents_of(folder: Path) -> Contents:
    return read_contents(folder, Progress("test"))


def numbers_of(name: str, contents: Contents) -> pd.DataFrame:
    (entry,) = [t for t in TABLES if t.name == name]
    return entry.make(contents, Progress("test")).numbers


def sorted_rows(numbers: pd.DataFrame) -> pd.DataFrame:
    columns = [c for c in numbers.columns if c != "key" and c != "vanilla_key"]
    shown = numbers[columns].astype(str)
    return shown.sort_values(columns).reset_index(drop=True)


@pytest.mark.parametrize("name", [t.name for t in TABLES if t.name not in ("acceptance", "tuned")])  # which need more files
def test_each_machines_rows_are_those_of_its_records_alone(name: str, ledgers: Folders) -> None:
    made = numbers_of(name, ledgers.both)
    for machine, contents in ledgers.alone.items():
        own = numbers_of(name, contents)
        assert len(own) and set(own["machine"]) == {machine}
        there = made[made["machine"] == machine][list(own.columns)]
        pd.testing.assert_frame_equal(sorted_rows(there), sorted_rows(own))


def test_claims_have_a_section_a_machine_with_the_numbers_of_its_records_alone(ledgers: Folders) -> None:
    both, alone = ledgers.folders
    made = claims_table(both)
    assert [[f for f in s.facts if f.startswith("Machine: ")] for s in made.sections] == [[f"Machine: {m}"] for m in alone]
    for machine, folder in alone.items():
        own = claims_table(folder).numbers
        assert "machine" not in own
        there = made.numbers[made.numbers["machine"] == machine].drop(columns="machine")
        assert there["effect_low"].notna().any()
        pd.testing.assert_frame_equal(there.astype(str).reset_index(drop=True), own.astype(str))


def test_reproduced_tables_have_a_section_a_machine(ledgers: Folders, tmp_path: Path) -> None:
    both, alone = ledgers.folders
    made = {}
    for folder in (both, *alone.values()):
        out = tmp_path / "out" / folder.name
        done = harness("reproduce", "--table", "1", "--model", str(TINY), "--no-run", "--results", str(folder), "--out", str(out))
        assert done.code == 0, done.err
        made[folder] = pd.read_csv(out / "table1.csv")
    for machine, folder in alone.items():
        there = made[both][made[both]["machine"] == machine].drop(columns="machine").reset_index(drop=True)
        pd.testing.assert_frame_equal(there, made[folder], check_dtype=False)


def test_plots_and_page_name_each_machine(ledgers: Folders) -> None:
    both, alone = ledgers.folders
    panels = panels_of(ledgers.both)
    assert [panel.title for panel in panels] == [
        f"{panel.setting.title()}, on {machine}" for panel, machine in zip(panels, alone, strict=True)
    ]
    own = {panel.setting.machine: speedup_data(panel) for panel in panels}
    for machine, contents in ledgers.alone.items():
        (panel,) = panels_of(contents)
        pd.testing.assert_frame_equal(own[machine], speedup_data(panel))
        assert panel.title == panel.setting.title()
    titles = [h.title for h in headlines(ledgers.both)]
    assert [title.split(", on ")[-1] for title in titles] == list(alone)
    html = page(both, 0, made=Drawn(ledgers.both, [], []))
    assert all(f"at most 72 new tokens, seed 0, on {machine}" in html for machine in alone)


def test_a_conversation_measured_on_both_machines_gives_no_ratio(tmp_path: Path) -> None:
    """Half of the methods on one machine, half on the other, as a merge may find them."""
    write_ledger(tmp_path, records(3.0, range(6), ("vanilla", "eagle1")), FAST)
    write_ledger(tmp_path, records(1.0, range(6), ("eagle2",)), SLOW)
    contents = contents_of(tmp_path)
    cells = {(s.method, s.machine): s for s in contents.summaries if s.task == "gsm8k"}
    eagle1, eagle2 = cells["eagle1", machine_label(FAST)], cells["eagle2", machine_label(SLOW)]
    assert eagle1.speedup == pytest.approx(1.5 + 0.2 * 3.0)
    assert eagle2.speedup is eagle2.speedup_ci95 is eagle2.baseline_tokens_per_s is eagle2.identical is None
    assert eagle2.tau is not None and len(cells) == 3
    assert not len(numbers_of("paired", contents))  # eagle2 over eagle1 would be of two machines
    by_machine = {s.facts[-2].split(",")[0]: s.shown for s in claims_table(tmp_path).sections}
    faster = by_machine["Machine: Slow CPU"].set_index("claim").loc["it is faster than plain decoding"]
    assert all(verdict.startswith("not measured") for verdict in faster["verdict"])


def test_two_folders_are_compared_machine_by_machine(ledgers: Folders, tmp_path: Path) -> None:
    both, alone = ledgers.folders
    made = comparison_table(both, both).numbers
    assert set(made["in"]) == {"both"} and set(made["machine"]) == set(alone)
    for machine, folder in alone.items():
        there = made[made["machine"] == machine].drop(columns="machine")
        own = comparison_table(folder, folder).numbers
        pd.testing.assert_frame_equal(there.astype(str).reset_index(drop=True), own.astype(str).reset_index(drop=True))
        one = comparison_table(both, folder).numbers  # a folder of one machine: with the same one
        assert {(on, side) for on, side in zip(one["machine"], one["in"], strict=True)} == {
            (name, "both" if name == machine else "A") for name in alone
        }
        said = (
            f"Differs: machine: {' and '.join(sorted(alone))} in A, {machine} in B; only cells with the same value are compared"
        )
        assert said in comparison_table(both, folder).sections[0].facts
    assert "Differs: nothing" in " ".join(comparison_table(both, both).sections[0].facts)


def test_a_comparison_makes_no_ratio_of_two_machines(tmp_path: Path) -> None:
    write_ledger(tmp_path, records(3.0, range(3), ("vanilla",)), FAST)
    write_ledger(tmp_path, records(1.0, range(3), ("eagle2",)), SLOW)
    made = comparison_table(tmp_path, tmp_path).numbers
    assert made[made["method"] == "eagle2"]["speedup_a"].isna().all() and made["tau_a"].notna().all()


def test_a_conversation_stays_on_its_machine(tmp_path: Path) -> None:
    with Ledger(tmp_path, several_machines=True) as ledger:
        fast, slow = ledger.write_env(FAST), ledger.write_env(SLOW)
        vanilla, eagle2 = (keyed(records(1.0, range(1), (m,))[0]) for m in ("vanilla", "eagle2"))
        assert ledger.machine_of(vanilla) is None
        ledger.append(vanilla | {"env": fast})
        assert ledger.machine_of(eagle2) == machine_label(FAST)
        with pytest.raises(UserError, match="holds conversation 0 of mt_bench from another machine: Fast CPU"):
            ledger.append(eagle2 | {"env": slow})
        ledger.append(keyed(unmeasured("eagle2", 0, "error")) | {"env": slow})  # is in no number
        with pytest.raises(UserError, match="is not there: an environment is written before its records"):
            ledger.append(eagle2 | {"env": "f" * 16})
        other = keyed(records(1.0, range(1, 2), ("eagle2",))[0])
        ledger.append(other | {"env": slow})
        ledger.append(keyed(records(1.0, range(1, 2), ("vanilla",))[0]) | {"env": slow})
    with Ledger(tmp_path, several_machines=True) as ledger:  # read anew
        assert ledger.machine_of(vanilla) == machine_label(FAST) and ledger.machine_of(other) == machine_label(SLOW)
        ledger.check_machine(vanilla["cell"], SLOW)
    with Ledger(tmp_path) as ledger:  # a plain run refuses both, as one of the two is another machine
        for env in (FAST, SLOW):
            with pytest.raises(UserError, match="from another machine: cpu was"):
                ledger.check_machine(vanilla["cell"], env)


def test_a_cell_of_three_machines_is_exported_as_three_files(tmp_path: Path) -> None:
    for i, cpu in enumerate(("A", "B", "C")):
        write_ledger(tmp_path / "in", records(1.0, range(2 * i, 2 * i + 2), ("eagle2",)), ENV | {"cpu": cpu})
    paths = export(tmp_path / "in", tmp_path / "out", "eagle")
    names = [p for p in paths if "gsm8k" in str(p)]
    assert len(set(names)) == 3
    told = sorted(line.split('"question_id": ')[1].split(",")[0] for p in names for line in p.read_text().splitlines())
    assert told == list("012345")


def test_the_records_of_a_folder_name_their_machines(ledgers: Folders) -> None:
    both, alone = ledgers.folders
    assert {r["machine"] for r in read(both)} == set(alone)
