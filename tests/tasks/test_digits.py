"""A task that is for one model: what it changes for others (nothing), and the model of pictures itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import counted, harness, refused
from make_ledger import FOLDER

import tasks
from harness.audit.levels import LEVELS, Prompts
from harness.common.errors import UserError
from harness.common.names import SIX_TASKS
from harness.ledger.ledger import read
from harness.load.config import model_config
from harness.load.kinds import training
from harness.load.model import Loaded, load
from harness.localise.localise import cut
from harness.metrics.cells import summarise
from harness.metrics.groups import notes_of
from harness.run.request import RunRequest
from harness.run.session import run_spec
from harness.run.tiers import TIERS
from harness.show.mosaic import FIRST_LEVEL, SIDE, UNKNOWN, cell_kinds, painted, picture
from harness.train.generate import answers
from tasks.base import Task
from tasks.overlap import evaluation_prompts

SIX = list(SIX_TASKS)
MODEL = "digits-mosaic"
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.set_num_threads(1)
    return load(model_config(MODEL), "float32")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry to spoil."""
    monkeypatch.setattr(tasks, "_registry", dict(tasks._registry))
    yield


def asked(model: str, *names: str) -> list[str]:
    request = RunRequest(methods=("vanilla",), tasks=names, model=model, source="bundled", limit=1, max_new_tokens=8)
    return [prompts.task for prompts in run_spec(model_config(model), request).prompt_sets]


# ---- a task of one model is in nobody else's way ----


def test_all_tasks_are_the_six_for_a_model_of_text_and_its_own_for_a_model_of_pictures() -> None:
    assert tasks.names() == SIX and tasks.known() == [*SIX, "digits"]
    assert asked("smollm2-135m", "all") == SIX and asked(MODEL, "all") == ["digits"]
    assert {request.tasks for tier in TIERS.values() for request in tier} == {("all",)}


def test_no_training_is_checked_against_pixels() -> None:
    assert {name.partition("/")[0] for name in evaluation_prompts()} == set(SIX)


def test_no_drafter_is_said_to_be_trained_on_texts_for_a_model_that_reads_none() -> None:
    assert training("lm", "smollm2-135m") == "`harness train sps --model smollm2-135m --out DIR` makes one"
    assert training("lm", "digits-mosaic") == "give its folder with --head"


def test_a_task_that_is_not_for_the_model_is_one_clear_line(tmp_path: Path) -> None:
    words = f"--method vanilla --limit 1 --out {tmp_path}"
    refused(harness("run --model smollm2-135m --task digits", words),
            "task 'digits' is for digits-mosaic alone", "smollm2-135m can be asked mt_bench, humaneval")  # fmt: skip
    refused(harness(f"run --model {MODEL} --task gsm8k", words), "'gsm8k' is a task of text", f"{MODEL} can be asked digits")
    refused(harness("run --model smollm2-135m --task all --task digits --dry-run", words), "is for digits-mosaic alone")
    refused(harness(f"run --model {MODEL} --task digit", words), "unknown task 'digit'; did you mean 'digits'?")
    assert not list(tmp_path.iterdir())


def test_commands_that_take_dialogues_refuse_a_model_of_pictures_before_anything_is_loaded(tmp_path: Path) -> None:
    for words in (f"train eagle --tokens 1 --answer-tokens 1 --out {tmp_path / 'head'}", "tune --conversations 9"):
        refused(
            harness(words, f"--model {MODEL}"), "takes dialogues of ShareGPT", "digits-mosaic reads no text: it is for digits"
        )
    assert not list(tmp_path.iterdir())


def test_the_list_says_whom_a_task_is_for() -> None:
    lines = harness("list tasks").out.splitlines()
    assert [line.split()[0] for line in lines] == [*SIX, "digits"]
    assert [line for line in lines if "alone" in line] == [lines[-1]] and "for digits-mosaic alone]" in lines[-1]
    assert MODEL in harness("list models").out


def test_a_users_task_may_be_for_his_own_model(tmp_path: Path, fresh: None) -> None:
    file = tmp_path / "stars.py"
    file.write_text("from tasks import Task\n\nTASK = Task('stars', 'Stars', 'stars', models=('mine', 'other'))\n")
    assert tasks.include(file) == ["stars"] and tasks.names() == SIX
    assert tasks.names_for("mine") == tasks.own("other") == ["stars"] and tasks.names_for("smollm2-135m") == SIX
    with pytest.raises(UserError, match="'stars' is for mine, other alone: model smollm2-135m can be asked mt_bench"):
        tasks.check_model("stars", "smollm2-135m")
    with pytest.raises(UserError, match="models='mine'; it must be a tuple of names"):
        Task("stars", "Stars", "stars", models="mine")  # type: ignore[arg-type]


def test_only_bundled_prompts_in_a_benchmarks_form_are_called_no_benchmark() -> None:
    cells = [s for s in summarise(read(FOLDER)) if s.source == "bundled"]
    assert any("benchmark" in note for note in notes_of(cells))
    renamed = [replace(s, task="digits") for s in cells]
    assert not any("benchmark" in note for note in notes_of(renamed))


# ---- the model ----


def test_a_prompt_is_bos_and_a_row_of_cells_pixel_by_pixel(loaded: Loaded) -> None:
    prompts = tasks.load("digits").prompts
    assert len(prompts) == 80 and len({p.turns for p in prompts}) == 80
    for p in prompts:
        levels = np.array([[int(word) for word in line.split()] for line in p.turns[0].splitlines()])
        assert levels.shape == (8, 32) and levels.min() >= 0 and levels.max() <= 16
        assert loaded.encode(loaded.render([("user", p.turns[0])])) == [BOS, *(levels.flatten() + FIRST_LEVEL)]
    assert loaded.decode([FIRST_LEVEL, FIRST_LEVEL + 16, EOS]) == "0 16"


def test_a_text_is_refused_in_one_line_and_nothing_stands_for_unknown_words(loaded: Loaded) -> None:
    for encode in (loaded.encode, loaded.encode_text):
        with pytest.raises(UserError, match="not for model digits-mosaic: its 20 tokens do not spell it"):
            encode("Why is 3 odd?")
    assert loaded.identity.template  # its probes are words


def test_audits_and_localise_take_the_models_own_prompts(loaded: Loaded) -> None:
    prompts = Prompts.of(loaded, LEVELS["quick"])
    assert [case.prompt[0] for case in prompts.usual] == ["digits/mosaic-1"]
    assert {len(text) for text in cut(loaded, 300)} == {300}


def test_the_model_has_learnt_digits_blank_and_plain_areas(loaded: Loaded) -> None:
    """Nats a pixel after the first row of pixels, by kind of cell; a digit's beside a table by place that has seen the digit."""
    found: dict[str, list[float]] = {}
    table: list[np.ndarray] = []
    for p in tasks.load("digits", limit=24).prompts:
        ids = torch.tensor(loaded.encode(p.turns[0]))
        with torch.inference_mode():
            logits = loaded.target.model(ids[None, :-1]).logits[0].float()
        nats = F.cross_entropy(logits, ids[1:], reduction="none").view(8, SIDE)
        levels = painted(p.turns[0], [0] * 768)
        levels[8:] = 0
        for c, kind in enumerate(cell_kinds(levels)[0]):
            found.setdefault(str(kind), []).append(float(nats[1:, 8 * c : 8 * c + 8].mean()))
            table += [levels[:8, 8 * c : 8 * c + 8]] * (kind == "digit")
    cells = np.stack(table)
    seen = (cells[:, None] == cells[None]).mean(1)  # [cells, 8, 8]: how often a pixel has this level here
    means = {kind: float(np.mean(values)) for kind, values in found.items()}
    assert means["blank"] < 0.1 and means["plain"] < 0.3 and 2 < means["noisy"] < 3.2, means
    assert means["digit"] < 0.95 * -np.log(seen[:, 1:]).mean(), means


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_harness_runs_on_it_and_the_head_drafts_well(tmp_path: Path, temperature: int) -> None:
    done = harness(f"run --model {MODEL} --task digits --method eagle2 --method eagle1 --limit 2 --max-new-tokens 64 --threads 1",
                   f"--dtype float32 --temperature {temperature} --json --out", tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    assert "digits bundled (2)" in done.out
    for method in ("eagle2", "eagle1"):
        cell = done.cells[method, "digits"]
        assert cell["tau"] > 1.5, cell["tau"]
        assert temperature or cell["identical"] == 2
    picture_of = picture(counted(tmp_path)[0])
    assert (picture_of[:10] >= 0).all() and (picture_of[10:] == UNKNOWN).all()


# ---- pictures ----


def test_a_picture_is_the_prompt_and_then_the_output() -> None:
    record = {"task": "digits", "source": "bundled", "key": "k", "sample_id": "mosaic-3", "token_ids": [3, 19, EOS, 4]}
    prompts = tasks.load("digits", source="bundled")
    found = picture({**record, "prompts_sha": prompts.sha256})  # type: ignore[typeddict-item]
    assert " ".join(map(str, found[:8].flatten())) == " ".join(prompts.prompts[2].turns[0].split())
    assert found[8, :5].tolist() == [0, 16, UNKNOWN, 1, UNKNOWN] and (found[9:] == UNKNOWN).all()
    assert painted(prompts.prompts[0].turns[0], [5] * 2000).shape == (32, 32)
    for change, said in (({"task": "gsm8k"}, "is of task gsm8k"), ({"prompts_sha": "0"}, "another set of prompts"),
                         ({"sample_id": "mosaic-81"}, "another set of prompts")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            picture({**record, "prompts_sha": prompts.sha256, **change})  # type: ignore[typeddict-item]


def test_a_cell_is_known_by_its_pixels() -> None:
    levels, rng = np.zeros((32, 32), dtype=np.int64), np.random.default_rng(0)
    levels[:8, 8:16] = 5
    levels[3, 9] = 6
    levels[:8, 16:24] = rng.integers(0, 17, (8, 8))
    levels[1:7, 26:30] = rng.integers(1, 17, (6, 4))
    levels[31, 31] = UNKNOWN
    kinds = cell_kinds(levels)
    assert kinds[0] == ["blank", "plain", "noisy", "digit"] and kinds[3] == ["blank"] * 3 + [None]
    all_known = [kind for p in tasks.load("digits").prompts for kind in cell_kinds(painted(p.turns[0], [3] * 768))[0]]
    assert set(all_known) == {"digit", "blank", "plain", "noisy"} and len(all_known) == 4 * 80


# ---- training ----


def test_answers_for_training_may_repeat_themselves_where_that_is_asked_for(loaded: Loaded) -> None:
    blank = [[BOS, *[FIRST_LEVEL] * 256]]
    made = [
        len(a.ids) - a.n_prompt
        for stop_loops in (True, False)
        for a in answers(loaded.target.model, blank, stop_ids={EOS}, max_new_tokens=96, greedy_share=1.0, stop_loops=stop_loops)
    ]
    assert made == [48, 96]
