"""The project as a stranger gets it: a wheel that works outside the checkout, and the shell scripts around it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from places import ROOT

import harness
from harness.load.config import model_config

PACKAGES = ("harness", "methods", "tasks", "models")
SCRIPTS = [ROOT / "run_all.sh", ROOT / "run_tests.sh", ROOT / ".ci" / "run", *sorted((ROOT / "scripts").glob("*.sh"))]
LISTED = {
    "methods": ["vanilla", "eagle1", "eagle2", "eagle2-no-value", "eagle2-no-rerank", "eagle2-no-both", "pld"],
    "tasks": ["mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "natural_questions", "digits"],
    "models": ["smollm2-135m", "digits-mosaic", "vicuna-7b", "llama2-chat-70b", "llama3-instruct-8b"],
}


@dataclass(frozen=True, slots=True)
class Install:
    """A wheel built from the tree and installed, without dependencies, in a folder far from the checkout."""

    wheel: Path
    site: Path
    elsewhere: Path  # an empty working directory

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HARNESS_", "PYTHON"))}
        env |= {"PYTHONPATH": str(self.site), "HARNESS_CACHE": str(self.elsewhere / "cache"), "COLUMNS": "200"}
        return subprocess.run(command, cwd=self.elsewhere, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("packaging")
    source, wheels, site, elsewhere = (folder / name for name in ("source", "wheels", "site", "elsewhere"))
    # From a copy: setuptools leaves build/ in the tree, and picks up what an earlier build left there.
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    ran(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    (wheel,) = wheels.glob("*.whl")
    ran(*pip, "install", "--no-deps", "--no-compile", "--target", str(site), str(wheel))
    return Install(wheel, site, elsewhere)


def ran(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_the_wheel_holds_every_file_of_the_packages_but_pictures_and_nothing_else(install: Install) -> None:
    in_tree = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".png"  # plots of trainings
    }
    in_wheel = {name for name in zipfile.ZipFile(install.wheel).namelist() if ".dist-info/" not in name}
    assert in_wheel == in_tree
    assert install.wheel.stat().st_size < 42e6


def test_the_wheel_holds_model_yamls_heads_bundled_prompts_and_the_record_schema(install: Install) -> None:
    archive = zipfile.ZipFile(install.wheel)
    names = archive.namelist()
    assert "models/smollm2-135m.yaml" in names
    config, pictures = model_config("smollm2-135m"), model_config("digits-mosaic")
    assert {f"models/digits-mosaic/{file}" for file in ("config.json", "model.safetensors", "tokenizer.json")} <= set(names)
    for source in (config.head, *config.drafters.values(), pictures.head):
        assert {f"models/{source}/{file}" for file in ("config.json", "model.safetensors", "training.json")} <= set(names)
    assert {f"tasks/bundled/{task}.jsonl" for task in LISTED["tasks"]} <= set(names)
    schemas = [json.loads(archive.read(name)) for name in names if re.fullmatch(r"harness/ledger/[^/]+\.json", name)]
    assert any("$schema" in schema and "trace" in schema.get("properties", {}) for schema in schemas)


def test_the_wheel_names_its_version_its_command_and_the_exact_torch(install: Install) -> None:
    archive = zipfile.ZipFile(install.wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(path).decode())
    assert (metadata["Name"], metadata["Version"]) == ("draft-tree-harness", harness.__version__)
    assert "torch==2.13.0" in metadata.get_all("Requires-Dist", [])
    assert (install.site / "bin" / "harness").exists()


@pytest.mark.parametrize("axis", LISTED)
def test_harness_list_works_outside_the_checkout_with_nothing_cached(install: Install, axis: str) -> None:
    where = install.run(sys.executable, "-c", "import harness; print(harness.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(install.site)  # and not this checkout
    done = install.run(sys.executable, str(install.site / "bin" / "harness"), "list", axis)
    assert done.returncode == 0, done.stderr
    assert [name for name in LISTED[axis] if name not in done.stdout] == []


def test_the_citation_file_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == harness.__version__


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_script_is_valid_bash(script: Path) -> None:
    ran("bash", "-n", str(script))
    assert os.access(script, os.X_OK) or script.name == "env.sh"  # env.sh is sourced


def test_run_all_explains_itself_without_making_an_environment(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "run_all.sh", tmp_path)
    shutil.copy(ROOT / "scripts" / "env.sh", tmp_path / "scripts")
    done = subprocess.run(["bash", "run_all.sh", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("--quick", "--claims", "--full", "--out", "--model", "--source"))
    assert not (tmp_path / ".venv").exists()


@dataclass(frozen=True, slots=True)
class StubbedRun:
    """What `run_all.sh` did with a `harness` that only writes its arguments down."""

    commands: list[list[str]]
    exit_code: int
    stdout: str


def stubbed_run_all(
    folder: Path, *args: str, run_exits: int = 0, audit_exits: int = 0, tune_exits: int = 0, lacks: str = "none"
) -> StubbedRun:  # fmt: skip
    log, out = folder / "log", folder / "out"
    stub = folder / "bin" / "harness"
    stub.parent.mkdir()
    stub.write_text(
        "#!/usr/bin/env bash\n"
        f"""printf '%s\\t' "$@" >>'{log}'; echo >>'{log}'\n"""
        f"""case "$*" in "fetch --model {lacks}"*) exit 1;; esac\n"""
        f"""if [ "$1" = matrix ] && [ {run_exits} = 0 ]; then mkdir -p '{out}'; echo '{{}}' >>'{out}/records.jsonl'; fi\n"""
        f"""if [ "$1" = matrix ]; then exit {run_exits}; fi\n"""
        f"""if [ "$1" = tune ]; then exit {tune_exits}; fi\n"""
        f"""if [ "$1" = verify ]; then echo 'a long table'; exit {audit_exits}; fi\n"""
        f"""if [ "$1" = report ]; then mkdir -p '{out}/tables'; echo 'the main table' >'{out}/tables/main.md'; fi\n"""
        f"""if [ "$1" = report ]; then echo 'a row a model' >'{out}/tables/models.md'; fi\n"""
    )
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "run_all.sh"), "--out", str(out), *args],
        env=os.environ | {"HARNESS_VENV": str(folder)},
        capture_output=True,
        text=True,
    )
    commands = [line.rstrip("\t").split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    return StubbedRun(commands, done.returncode, done.stdout)


def last_value(command: list[str], option: str) -> str:
    return command[len(command) - 1 - command[::-1].index(option) + 1]


def test_run_all_obtains_runs_tabulates_plots_and_reports_in_this_order_and_prints_the_table(tmp_path: Path) -> None:
    done = stubbed_run_all(tmp_path)
    steps = ["fetch", "matrix", "verify", "reproduce", "report"]
    assert [command[0] for command in done.commands] == steps
    assert "--all" in done.commands[-1], "one read of the ledger for tables, plots, claims and the page"
    assert last_value(done.commands[1], "--tier") == "default"
    assert done.stdout == "the main table\n"
    assert done.exit_code == 0


def test_run_all_hands_options_on_so_that_they_override_the_tier(tmp_path: Path) -> None:
    args = ["--quick", "--model=m.yaml", "--source", "bundled", "--limit", "3", "--set", "total=24"]
    (fetch, run, *_) = stubbed_run_all(tmp_path, *args).commands
    assert fetch == ["fetch", "--model", "m.yaml", "--source", "bundled"]
    wanted = {"--model": "m.yaml", "--source": "bundled", "--limit": "3", "--set": "total=24", "--tier": "quick"}
    assert {option: last_value(run, option) for option in wanted} == wanted


def test_run_all_tunes_first_where_asked_and_for_what_is_then_run(tmp_path: Path) -> None:
    (_, tune, run, *_) = stubbed_run_all(tmp_path, "--tune", "--dtype=float32", "--threads", "1", "--head", "h").commands
    assert tune[:3] == ["tune", "--method", "all"] and tune.count("--temperature") == 2 and run[0] == "matrix"
    for option, value in {"--dtype": "float32", "--threads": "1", "--head": "h", "--model": "smollm2-135m"}.items():
        assert last_value(tune, option) == last_value(run, option) == value


def test_run_all_takes_several_models_into_one_folder_and_reports_on_all(tmp_path: Path) -> None:
    done = stubbed_run_all(tmp_path, "--models", "vicuna-7b,llama2-chat-7b", "--quick")
    after = ["reproduce", "report"]
    assert [c[0] for c in done.commands] == [*["fetch", "matrix", "verify"] * 2, *after]
    assert [last_value(c, "--model") for c in done.commands[:6]] == ["vicuna-7b"] * 3 + ["llama2-chat-7b"] * 3
    runs, audits = done.commands[1:6:3], done.commands[2:6:3]
    assert {last_value(c, "--out") for c in runs} == {str(tmp_path / "out")}
    assert [last_value(c, "--out") for c in audits] == [str(tmp_path / "out/audit" / m) for m in ("vicuna-7b", "llama2-chat-7b")]
    reproduce = done.commands[6]
    assert "--no-run" in reproduce and reproduce.count("--model") == 2
    assert done.stdout == "a row a model\nthe main table\n"


def test_run_all_stops_where_a_step_stopped_and_exits_as_it_did(tmp_path: Path) -> None:
    done = stubbed_run_all(tmp_path, run_exits=130)
    assert [command[0] for command in done.commands] == ["fetch", "matrix"]
    assert done.exit_code == 130


def test_run_all_goes_on_with_the_other_models_and_names_the_one_left_out(tmp_path: Path) -> None:
    done = stubbed_run_all(tmp_path, "--models", "vicuna-7b,llama2-chat-7b", lacks="vicuna-7b")
    assert [c[0] for c in done.commands[:4]] == ["fetch", "fetch", "matrix", "verify"]
    assert done.commands[-1][0] == "report" and done.stdout.endswith("the main table\n")
    assert done.commands[-3].count("--model") == 1 and done.exit_code == 1


@pytest.mark.parametrize(("step", "code"), [("tune", 130), ("run", 130), ("audit", 130), ("run", 143), ("audit", 143)])
def test_run_all_ends_with_an_interrupt_whatever_is_left(tmp_path: Path, step: str, code: int) -> None:
    exits = {f"{step}_exits": code}
    done = stubbed_run_all(tmp_path, "--tune", "--models", "vicuna-7b,llama2-chat-7b", **exits)  # type: ignore[arg-type]
    assert done.commands[-1][0] == {"tune": "tune", "run": "matrix", "audit": "verify"}[step] and done.exit_code == code


def test_run_all_has_nothing_to_tabulate_where_no_model_can_be_had(tmp_path: Path) -> None:
    done = stubbed_run_all(tmp_path, "--model", "vicuna-7b", lacks="vicuna-7b")
    assert [c[0] for c in done.commands] == ["fetch"] and done.exit_code == 1


def test_run_all_makes_the_tables_of_what_the_audit_found_out_and_fails(tmp_path: Path) -> None:
    done = stubbed_run_all(tmp_path, audit_exits=2)
    assert done.commands[-1][0] == "report" and done.stdout == "the main table\n"
    assert done.exit_code == 1


def test_run_all_names_an_option_that_lacks_its_value(tmp_path: Path) -> None:
    assert stubbed_run_all(tmp_path, "--model").exit_code == 1


@pytest.mark.parametrize(
    "tier", [("--tune",), ("--quick",), ("--claims",), ("--full",)], ids=["default", "quick", "claims", "full"]
)
def test_the_command_line_knows_every_option_that_run_all_uses(tmp_path: Path, tier: tuple[str, ...]) -> None:
    for command in stubbed_run_all(tmp_path, *tier, "--source", "bundled").commands:
        shown = subprocess.run(
            [sys.executable, "-c", "from harness.cli import main; main()", command[0], "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0, shown.stderr
        assert [word for word in command if word.startswith("--") and word not in shown.stdout] == []
