"""The paper's cells: published numbers with their sources, verdicts by the rules, and the command on the tiny model."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import counted, files, harness, isolate, refused, tiny_copy
from made_up_records import measured
from made_up_replays import replay
from make_ledger import FOLDER
from places import ROOT, SHARED, TINY
from safetensors.torch import load_file, save_file

import methods
from harness.common.errors import UserError
from harness.common.names import SIX_TASKS
from harness.forms.table import markdown
from harness.ledger.ledger import read
from harness.load.config import model_config, paper_models
from harness.metrics.by_definition import OF_QUESTIONS, OTHER_TAUS, POOLED, WORDS
from harness.metrics.cells import mean_estimates, six_task_mean, summarise
from harness.metrics.definitions import Estimate
from harness.metrics.pairing import side_of
from harness.metrics.steps import StepCosts
from harness.paper import plan as command
from harness.paper import published
from harness.paper.figures_1_2 import write_bars
from harness.paper.published import Number, PaperCell, cells, item, numbers, stand_in, the_paper, third_parties
from harness.paper.tables_1_3 import judged_table
from harness.paper.verdict import TOLERANCE, Measurements, Ours, ReportedModel, judge, reported_model
from harness.replay.record import Replay
from tasks.paper_files import PAPER_FILES

PUBLISHED = SHARED / "paper" / "published_numbers.csv"
VICUNA = ReportedModel("vicuna-7b", "Vicuna-7B", 512)
STAND_IN = ReportedModel("toy", None, 512)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def cell(method: str = "EAGLE-2", task: str = "GSM8K", table: str = "1", temperature: float = 0.0) -> PaperCell:
    """A cell of Vicuna-7B's."""
    wanted = ("Vicuna-7B", method, task, temperature)
    (found,) = [c for c in cells(item("table", table)) if (c.model, c.method, c.task, c.temperature) == wanted]
    return found


def ours(tau: float | Estimate = 4.97, speed: float = 3.63, half: float = 0.05, **changes: Any) -> Ours:
    accept = tau if isinstance(tau, Estimate) else Estimate(tau, (tau - half, tau + half), 80)
    made = Ours(
        Estimate(speed, (speed - half, speed + half), 80),
        accept,
        accept.value,
        speed,
        StepCosts(1.1, 0.2, 0.1),
        "paper",
        512,
        is_apart=False,
        is_shared=False,
        speedup_of_questions=changes.get("speedup", Estimate(speed, (speed - half, speed + half), 80)),
    )
    return replace(made, **changes)


def verdict(o: Ours | None, of: PaperCell | None = None, target: ReportedModel = VICUNA) -> str:
    return judge(of or cell(), target, o).verdict


# ---- published numbers ----------------------------------------------------------------------------------------------


def test_every_cell_of_the_papers_tables_is_there() -> None:
    counts = {i.name: len(cells(i)) for i in published.ITEMS}
    # table 1: 14 methods and 9 at T = 1 over four models, by six tasks and their mean
    assert counts == {"table 1": 224, "table 2": 8, "table 3": 8, "figure 1": 10, "figure 2": 25, "figure 5": 1, "figure 6": 1}
    assert {c.model for i in published.ITEMS for c in cells(i)} == set(paper_models())
    assert {c.task for c in cells(item("table", "1"))} == {*published.TASKS, published.MEAN}


def test_a_number_stands_the_same_in_every_table_of_the_paper() -> None:
    for metric in ("speedup", "tau"):
        by_key: dict[tuple[str, ...], set[float]] = {}
        for n in the_paper(metric):
            by_key.setdefault(n.key, set()).add(n.value)
        assert [key for key, values in by_key.items() if len(values) > 1] == []


def test_the_six_task_means_are_those_of_the_tasks() -> None:
    by_task = {(n.model, n.method, n.temperature, n.metric, n.task): n.value for m in ("speedup", "tau") for n in the_paper(m)}
    means = [key for key in by_task if key[-1] == published.MEAN]
    assert means
    for key in means:
        mean = sum(by_task[(*key[:-1], task)] for task in published.TASKS) / 6
        assert by_task[key] == pytest.approx(mean, abs=0.02), key  # the printed means are up to 0.02 off


def test_every_number_has_a_source_and_transcriptions_are_marked() -> None:
    assert all(n.source for n in numbers())
    doubtful = {(n.table, n.method) for n in numbers() if not n.confirmed}
    assert {("Table 3 (ablation)", "w/o value"), ("Table 2", "PLD")} <= doubtful
    assert all(table in ("Table 2", "Table 3 (ablation)") for table, _ in doubtful)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the collection that the rows were taken from is not here")
def test_shipped_rows_are_those_that_the_rules_take_of_the_collection(published_script: Any) -> None:
    assert published_script.differences(PUBLISHED) == []


@pytest.fixture
def published_script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("published")


def test_a_corrected_or_new_row_of_the_collection_is_seen(
    published_script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with published_script.SHIPPED.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row["paper"].startswith("RADAR raw")]
    shipped = tmp_path / "shipped.csv"
    monkeypatch.setattr(published_script, "SHIPPED", shipped)
    columns = published_script.COLUMNS[:7] + ("value", "source", "confirmed")

    def collection(name: str, some: list[dict[str, str]]) -> Path:
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(some)
        return tmp_path / name

    shipped.write_text(published_script.text_of(collection("as it was", rows)))
    assert published_script.differences(tmp_path / "as it was") == []
    (radar,) = [row for row in rows if row["paper"] == "RADAR re-run" and (row["task"], row["metric"]) == ("GSM8K", "tau")]
    corrected = [row | {"temperature": "not stated"} if row is radar else row for row in rows]
    (line,) = published_script.differences(collection("relabelled", corrected))
    assert line.startswith("- RADAR re-run,README,Vicuna-13B,EAGLE-2,GSM8K,1,tau,mean_of_questions,4.46,")
    counted = [*rows, radar | {"paper": "RADAR raw outputs", "metric": "tau_mean_of_questions", "value": "4.458"}]
    (line,) = published_script.differences(collection("with a new row", counted))
    assert line.startswith("+ RADAR raw outputs,") and ",tau,mean_of_questions,4.458," in line
    strangers = [*rows, radar | {"model": "LLaMA3.1-Instruct-8B"}, radar | {"task": "MBPP"}, radar | {"value": ""}]
    assert published_script.differences(collection("of no cell", strangers)) == []
    with pytest.raises(KeyError, match="Nobody"):  # a paper of which it is not known how it averages
        published_script.text_of(collection("unknown", [*rows, radar | {"paper": "Nobody"}]))


def test_every_tau_and_speedup_says_how_it_is_averaged_and_where_that_is_known_from() -> None:
    of_cells = [n for n in numbers() if n.metric in ("tau", "speedup")]
    assert all(n.definition and (n.defined_in or n.definition == "not_stated") for n in of_cells)
    assert {name for n in of_cells for name in (*n.definitions, n.definition.split(" or ")[0])} <= WORDS.keys()
    tau = {n.definition for n in numbers() if n.metric == "tau" and n.by == "RADAR"}
    assert tau == {"mean_of_questions"}  # what its README prints
    raw = {(n.task, n.definition): n.value for n in numbers() if n.metric == "tau" and n.by == "RADAR raw outputs"}
    assert raw["MT-bench", "pooled"] == 4.267 and raw["MT-bench", "mean_of_questions"] == 4.377


# ---- definitions ----------------------------------------------------------------------------------------------------


def of_definition(definition: str, of: PaperCell) -> PaperCell:
    return replace(of, tau=tuple(replace(n, definition=definition) for n in of.tau))


def test_a_tau_of_another_definition_is_not_compared_with_our_pooled_one() -> None:
    near = ours(tau=4.97)
    assert verdict(near, of_definition("mean_of_questions", cell())) == "speed reproduced"  # ours is not known by it
    assert verdict(near, of_definition("not_stated", cell())) == "speed reproduced"
    by_it = replace(near, taus={"mean_of_questions": 5.4})
    assert verdict(by_it, of_definition("mean_of_questions", cell())) == "not reproduced: τ +0.43 of the paper's (speed is)"
    assert verdict(by_it, of_definition("pooled", cell())) == "τ and speed reproduced"


def test_where_only_the_other_possible_definition_agrees_the_verdict_says_so() -> None:
    assert cell().tau[0].definitions == ("pooled", "mean_of_questions_from_0")
    o = replace(ours(tau=4.70), taus={"mean_of_questions_from_0": 4.95})
    assert verdict(o) == (
        "τ and speed reproduced (τ as mean of questions, index from 0: 4.95; pooled it is -0.27 of the paper's)"
    )
    assert verdict(replace(o, taus={"mean_of_questions_from_0": 4.5})).startswith("not reproduced: τ -0.27 of")


def test_speed_is_judged_by_the_papers_formula_and_not_by_totals() -> None:
    assert cell().speedup[0].definitions == ("mean_of_questions",)
    o = replace(ours(speed=3.63), speedup_of_questions=Estimate(3.9, (3.8, 4.0), 80))
    assert verdict(o) == "τ reproduced, speed +0.27 above the paper's"
    lacking = replace(o, speedup_of_questions=Estimate(None, None, 0))
    assert verdict(lacking).startswith("τ reproduced, speed not judged (none as mean of questions")


def test_others_numbers_of_another_definition_say_so_and_have_ours_by_the_same_beside_them() -> None:
    (mt_bench,) = [c for c in cells(item("table", "1")) if (c.model, c.method, c.task, c.temperature) ==
                   ("Vicuna-13B", "EAGLE-2", "MT-bench", 1.0)]  # fmt: skip
    o = replace(ours(tau=4.2), taus={"mean_of_questions": 4.31})
    shown = markdown(judged_table(item("table", "1"), [judge(mt_bench, VICUNA, o)]))
    assert "4.38 RADAR (mean of questions; ours 4.31)" in shown and "4.267 RADAR raw outputs," in shown
    assert "4.37 Gumiho (mean of turns, index from 0)" in shown and "4.33 GTO (definition not stated)" in shown


def test_third_parties_are_others_on_the_same_prompts() -> None:
    found = third_parties(cell(task="MT-bench"), "speedup")
    assert {n.by for n in found} == {"Gumiho", "Spec-Bench A100", "Spec-Bench 3090", "SAM-Decoding"}
    assert all(n.paper != published.PAPER and n.method == "EAGLE-2" for n in found)
    # Spec-Bench's mathematics are other questions than the paper's GSM8K
    assert not [n for n in third_parties(cell(task="GSM8K"), "speedup") if n.by.startswith("Spec-Bench")]


@pytest.mark.parametrize(("kind", "number", "said"), [("table", "4", "1, 2, 3"), ("figure", "8", "1, 2, 5, 6")])
def test_what_is_not_in_the_paper_is_named_with_what_is(kind: str, number: str, said: str) -> None:
    with pytest.raises(UserError, match=f"{kind} '{number}' is not in the paper; .*: {said}"):
        item(kind, number)


def test_a_drawing_is_called_one() -> None:
    with pytest.raises(UserError, match="figure '4' is a drawing without numbers"):
        item("figure", "4")


# ---- the verdict ----------------------------------------------------------------------------------------------------


def test_both_are_reproduced_where_tau_is_near_and_the_interval_covers_the_speed() -> None:
    assert verdict(ours()) == "τ and speed reproduced"


@pytest.mark.parametrize(
    ("low", "high", "agrees"), [(4.70, 4.86, False), (4.70, 4.87, True), (5.07, 5.2, True), (5.08, 5.2, False)]
)
def test_tau_may_be_a_tenth_outside_our_interval(low: float, high: float, agrees: bool) -> None:
    assert cell().tau[0].value == 4.97 and TOLERANCE == 0.10
    o = ours(tau=Estimate((low + high) / 2, (low, high), 80))
    assert verdict(o).startswith("τ and speed reproduced" if agrees else "not reproduced: τ")


def test_tau_may_be_near_by_its_value_where_its_interval_is_not() -> None:
    assert verdict(ours(tau=Estimate(5.0, (5.08, 5.2), 80))).startswith("τ and speed reproduced")


def test_tau_needs_no_interval() -> None:
    assert verdict(ours(tau=Estimate(5.07, None, 3))) == "τ and speed reproduced"
    assert verdict(ours(tau=Estimate(5.08, None, 3))).startswith("not reproduced: τ +0.11 of the paper's")


@pytest.mark.parametrize(
    ("costs", "decode", "part"),
    [((1.2, 1.1, 0.3), 1.91, "c_draft"), ((2.4, 0.1, 0.1), 1.91, "c_verify"), ((1.1, 0.2, 1.3), 1.91, "c_other"),
     ((1.1, 0.1, 0.1), 3.8, "the prefill")],
)  # fmt: skip
def test_a_speed_below_the_papers_names_the_part_that_took_it(costs: Any, decode: float, part: str) -> None:
    said = verdict(ours(speed=1.9, costs=StepCosts(*costs), decode_speedup=decode))
    assert said.startswith(f"τ reproduced, speed limited by {part} (")


def test_a_speed_above_the_papers_is_not_called_limited() -> None:
    assert verdict(ours(speed=4.0)) == "τ reproduced, speed +0.37 above the paper's"


def test_neither_reproduced_names_both_gaps() -> None:
    assert verdict(ours(tau=4.0, speed=2.0)) == "not reproduced: τ -0.97 of and speed -1.63 of the paper's"


def test_a_speed_without_interval_or_from_two_processes_is_not_judged() -> None:
    assert verdict(ours(speedup=Estimate(3.63, None, 4))).endswith("speed not judged (no interval under 5 prompts)")
    assert verdict(ours(is_apart=True)).endswith("speed not judged (its baseline was measured in another process)")


def test_what_cannot_be_compared_says_why() -> None:
    assert verdict(ours(), target=STAND_IN) == "not comparable: toy is not a model of the paper"
    assert verdict(ours(source="bundled", max_new_tokens=128)) == (
        "not comparable: bundled prompts; at most 128 new tokens, not 512"
    )
    assert verdict(None) == verdict(None, cell("Medusa")) == "not measured"


def test_every_method_of_table_1_is_here_and_a_draft_that_is_not_says_so() -> None:
    assert {c.method_here for c in cells(item("table", "1"))} == {
        "sps",
        "pld",
        "lookahead",
        "medusa",
        "hydra",
        "eagle1",
        "eagle2",
    }
    in_figure = {c.method: c for c in cells(item("figure", "2")) if c.method_here is None}
    assert set(in_figure) == {"SpS (LLaMA2-Chat-7B draft)", "SpS (LLaMA3-Instruct-8B draft)"}
    for name, own in in_figure.items():
        assert verdict(None, own) == f"not comparable: {name} is not among the methods here"
    (sps,) = [c for c in cells(item("figure", "2")) if (c.model, c.method) == ("Vicuna-7B", "SpS")]
    assert sps.tau[0].table == "Table 1"  # the figure gives its speedup alone


def test_a_verdict_that_rests_on_a_transcription_is_marked_and_the_note_says_so() -> None:
    doubtful, sure = cell("w/o value", table="3"), cell(table="3")
    o = ours(tau=doubtful.tau[0].value, speed=doubtful.speedup[0].value)
    assert verdict(o, doubtful) == "τ and speed reproduced ‡" and "‡" not in verdict(ours(), sure)
    shown = markdown(judged_table(item("table", "3"), [judge(doubtful, VICUNA, o), judge(sure, VICUNA, ours())]))
    assert "2.93 ‡" in shown and "3.63 ‡" not in shown and "did not read it there" in shown
    assert "‡" not in markdown(judged_table(item("table", "1"), [judge(cell(), VICUNA, ours())]))


def test_a_stand_in_has_the_range_of_the_papers_models_and_no_methods_that_are_not_here() -> None:
    made = stand_in(cells(item("table", "1")), "toy")
    everything = {"SpS", "PLD", "Lookahead", "Medusa", "Hydra", "EAGLE", "EAGLE-2"}
    assert {c.method for c in made} == everything and {c.model for c in made} == {"toy"}
    in_figure = stand_in(cells(item("figure", "2")), "toy")
    assert {c.method for c in in_figure} == everything - {"PLD", "Hydra"}  # other drafts of SpS than Vicuna's are not here
    (one,) = [c for c in made if (c.method, c.task, c.temperature) == ("EAGLE-2", "MT-bench", 0.0)]
    assert sorted(n.value for n in one.speedup) == [3.43, 3.62, 4.21, 4.26]
    table = judged_table(item("table", "1"), [judge(one, STAND_IN, ours())])
    assert "3.43 to 4.26" in markdown(table) and "not in the paper, whose numbers are of Vicuna-13B" in markdown(table)
    assert table.numbers["paper_speedup"].isna().all()  # a range is not the paper's number for this model


# ---- records --------------------------------------------------------------------------------------------------------


def test_cells_and_means_are_those_of_the_tables() -> None:
    records = read(FOLDER)
    m = Measurements(records, "toy", FOLDER)
    summaries = [s for s in summarise(records) if (s.method, s.preset, s.temperature) == ("eagle2", "paper", 0.0)]
    one = m("eagle2", "gsm8k", 0.0)
    assert one is not None and one.costs is not None
    (expected,) = [s for s in summaries if s.task == "gsm8k"]
    assert (one.speedup.value, one.speedup.ci95, one.tau.value) == (expected.speedup, expected.speedup_ci95, expected.tau)
    mean, by_hand = m("eagle2", published.MEAN, 0.0), six_task_mean(summaries)
    assert mean is not None and mean.speedup.ci95 is not None and by_hand.speedup is not None
    assert mean.speedup.value == pytest.approx(by_hand.speedup) and mean.tau.value == pytest.approx(by_hand.tau)
    assert mean.speedup.ci95[0] < by_hand.speedup < mean.speedup.ci95[1]
    assert mean.tau.prompts == sum(s.prompts for s in summaries)
    assert one.speedup_of_questions.value == pytest.approx(expected.official.speedup)
    official = [s.official.speedup for s in summaries]
    assert mean.speedup_of_questions.value == pytest.approx(sum(x for x in official if x) / len(official))
    assert set(one.taus) == set(mean.taus) == set(OTHER_TAUS)
    assert one.taus["pooled_from_0"] == pytest.approx(expected.official.tau)
    assert m("eagle2", published.MEAN, 1.0) is None  # only one task was measured there
    assert m("eagle2-no-both", "gsm8k", 0.0) is None
    # a task without a baseline leaves the mean of tau, and no mean of speeds
    own, base = (
        side_of(r for r in m.records if (r["method"], r["temperature"]) == (name, 0.0)) for name in ("eagle2", "vanilla")
    )
    speed, length = mean_estimates(own, {key: r for key, r in base.items() if r["task"] != "gsm8k"})
    assert speed.value is None and length.value == pytest.approx(by_hand.tau)


@pytest.mark.parametrize(
    ("key", "value"), [("threads", 4), ("dtype", "float16"), ("machine", "another"), ("top_p", 0.9), ("system", "none")]
)
def test_mixed_environments_are_refused_and_the_key_is_named(key: str, value: Any) -> None:
    records = [measured(m, i, [0] * 9, machine="one") for m in ("vanilla", "eagle2") for i in range(2)]
    Measurements(records, "toy", "DIR")
    records[0][key] = value  # type: ignore[literal-required]
    with pytest.raises(UserError, match=f"DIR holds mixed environments: {key} of the records of toy is .* and "):
        Measurements(records, "toy", "DIR")


def test_two_heads_and_two_sets_of_options_are_refused() -> None:
    heads = [measured(m, 0, [0] * 9, head_sha=m) for m in ("eagle1", "eagle2")]
    with pytest.raises(UserError, match="head_sha of all eagle methods of toy is eagle1 and eagle2"):
        Measurements(heads, "toy", "DIR")
    medusas = [measured("eagle2", i, [0] * 9, method="medusa", head_sha=f"heads {i}") for i in range(2)]
    with pytest.raises(UserError, match="head_sha of medusa of toy is heads 0 and heads 1"):
        Measurements(medusas, "toy", "DIR")
    Measurements([heads[0], medusas[0]], "toy", "DIR")  # each has its own drafter
    options = [measured("eagle2", i, [0] * 9, options={"total": i}) for i in range(2)]
    with pytest.raises(UserError, match="options of eagle2 .paper. at T = 0 of toy is "):
        Measurements(options, "toy", "DIR")


def test_of_several_sources_the_papers_is_taken() -> None:
    def records(source: str, n: int) -> list[Any]:
        return [measured(m, i, [1] * 9, source=source) for m in ("vanilla", "eagle2") for i in range(n)]

    def source(found: list[Any]) -> str:
        one = Measurements(found, "toy", "DIR")("eagle2", "gsm8k", 0.0)
        assert one is not None
        return one.source

    assert source(records("paper", 1) + records("bundled", 3)) == "paper"
    assert source(records("pypi", 1) + records("bundled", 3)) == "bundled"


def _replays_of(records: list[Any], steps: list[list[int]], **changes: Any) -> list[Replay]:
    """EAGLE-2's of vanilla's answers, an answer each."""
    keys = [r["key"] for r in records if r["method"] == "vanilla"]
    run = next((r for r in records if r["method"] == "eagle2"), measured("eagle2", 0, [1]))
    made = [replay("eagle2", i, own, [[1]] * len(own), [4] * len(own), run["options"]) for i, own in enumerate(steps)]
    same = {"head_id": run["head_id"], **changes}
    return [r.model_copy(update={"answer": key, **same}) for r, key in zip(made, keys, strict=True)]


def test_tau_of_replays_is_of_all_answers_and_the_speed_of_those_that_were_run() -> None:
    """Eight answers of vanilla's, five runs: the verdict on tau is of eight, which no run of other prompts is."""
    steps = [[3] * 3] * 5 + [[1] * 6] * 3  # tau 4 on the prompts that were run, 2 on the others
    records = [measured("vanilla", i, own) for i, own in enumerate(steps)]
    runs = [measured("eagle2", i, own) for i, own in enumerate(steps[:5])]
    both = Measurements(records + runs, "toy", "DIR", _replays_of(records, steps))("eagle2", "gsm8k", 0.0)
    assert both and both.replayed and both.tau.value == 4 and both.speedup.prompts == 5
    of_all = (5 * 12 + 3 * 12) / (5 * 3 + 3 * 6)
    assert both.replayed.tau.prompts == 8 and both.replayed.tau.value == pytest.approx(of_all)
    assert both.tau_as(POOLED) == both.replayed.tau
    assert (
        both.taus != both.replayed.taus and (by := both.tau_as(OF_QUESTIONS)) and by.value == pytest.approx((5 * 4 + 3 * 2) / 8)
    )
    alone = Measurements(records, "toy", "DIR", _replays_of(records, steps))("eagle2", "gsm8k", 0.0)
    assert alone and alone.speedup.value is None and alone.tau_as(POOLED) == both.replayed.tau
    shown = markdown(judged_table(item("table", "1"), [judge(cell(), STAND_IN, o) for o in (both, alone)]))
    assert f"{of_all:.2f}" in shown and "(8)" in shown
    others = [_replays_of(records, steps, **changes) for changes in (
        {"preset": "tuned"}, {"answer": "another ledger's"}, {"head_id": "another"}, {"options": {"total": 5}})]  # fmt: skip
    for none in (*others, []):
        without = Measurements(records + runs, "toy", "DIR", none)("eagle2", "gsm8k", 0.0)
        assert without and without.replayed is None
    two = [*_replays_of(records, steps), *_replays_of(records, steps, head_id="another")]
    with pytest.raises(UserError, match="the replays of eagle2 at 'paper' are of several heads or options"):
        Measurements(records, "toy", "DIR", two)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_cell_with_hours_and_memory(tmp_path: Path) -> None:
    done = harness("reproduce --table 1 --dry-run --cells --results", tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    listed = [line for line in lines if line.startswith("cell: ")]
    assert len(listed) == 224 + 4 * 2 * 6  # the baselines along
    assert "cell: vicuna-7b x mt_bench x eagle2 (EAGLE-2) [paper: 3.62x, tau 4.98] at T = 0: 160 of 160" in done.out
    hydra = [line for line in listed if " x hydra (Hydra) " in line]
    assert len(hydra) == 14 and all(line.endswith(": the model has no set of Hydra heads") for line in hydra)
    assert all(line.endswith((" min", " h", " s", "of the six")) for line in listed if line not in hydra)
    assert any("missing: set of Medusa heads of vicuna-7b" in line for line in lines)
    assert len([line for line in lines if ": memory: " in line and "missing" not in line]) == 4
    assert any(line.startswith("vicuna-7b: missing: weights of vicuna-7b") for line in lines)
    assert sum(": missing: prompts of mt_bench, humaneval" in line and "harness data pull" in line for line in lines) == 4
    short = harness("reproduce --table 1 --dry-run --results", tmp_path).out.splitlines()
    assert short[:5] == lines[:5] and short[4].startswith("together: ") and not any(line.startswith("cell: ") for line in short)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_dry_run_marks_unconfirmed_numbers(tmp_path: Path) -> None:
    out = harness("reproduce --table 3 --dry-run --cells --results", tmp_path).out
    assert "[paper: 3.21x (unconfirmed), tau 4.39 (unconfirmed)]" in out and "[paper: 3.62x, tau 4.98]" in out


def test_hours_follow_the_authors_rate_and_the_number_of_parameters(tmp_path: Path) -> None:
    out = harness("reproduce --figure 1 --model llama2-chat-7b --limit 10 --dry-run --cells --results", tmp_path).out
    seconds = 20 * 512 / published.plain_rate().value  # the model whose rate is known: 20 turns
    assert f"vanilla (the baseline) at T = 1: 20 of 20 generations to make, about {seconds / 60:.0f} min" in out
    assert model_config("llama2-chat-7b").paper == published.plain_rate().model


@pytest.mark.parametrize(
    ("words", "said"),
    [("--table 9", "table '9' is not in the paper"), ("--figure 3", "is a drawing"),
     ("--table 1 --model llama3-instruct-8b", "model llama3-instruct-8b is not in table 1 of the paper; in it are: vicuna-13b"),
     ("--table 1 --model vicuna-33b", "model 'vicuna-33b' is not in the paper; its targets are"),
     ("--table 1 --limit 0", "--limit is 0"), ("--dry-run --source papr", "unknown source 'papr'; did you mean 'paper'?")],
)  # fmt: skip
def test_bad_input_is_one_line(words: str, said: str, tmp_path: Path) -> None:
    refused(harness("reproduce", words, "--results", tmp_path), said)


@pytest.mark.parametrize(
    ("words", "said"),
    [("--max-new-tokens 11", "max_new_tokens 10, and 11"), ("--threads 2", "threads 1, and 2"),
     ("--dtype float64", "dtype float32, and float64")],
)  # fmt: skip
def test_another_environment_is_refused_before_anything_is_measured(
    words: str, said: str, reproduced: tuple[Path, str], tmp_path: Path
) -> None:
    before = (reproduced[0] / "records.jsonl").read_bytes()
    done = harness(f"reproduce --table 3 {SMALL} --limit 5 {words} --out {tmp_path} --results", reproduced[0])
    assert done.code == 2 and f"tiny with {said} is asked for" in done.err
    assert (reproduced[0] / "records.jsonl").read_bytes() == before


def test_generations_of_other_prompts_or_another_budget_are_still_to_make(reproduced: tuple[Path, str]) -> None:
    def left(words: str) -> set[str]:
        out = harness(f"reproduce --table 3 --model {TINY} --dry-run --cells {words} --results", reproduced[0]).out
        return {
            line.split(": ")[-1].split(" generations")[0]
            for line in out.splitlines()
            if " at T = 0: " in line and "gsm8k" in line
        }

    assert (
        left("--source bundled --limit 5 --max-new-tokens 10")
        == left("--source auto --limit 5 --max-new-tokens 10")
        == {"0 of 5"}
    )
    assert (
        left("--source paper --limit 5 --max-new-tokens 10")
        == left("--source bundled --limit 5 --max-new-tokens 11")
        == {"5 of 5"}
    )


def test_the_cells_of_the_items_are_measured_and_no_others() -> None:
    own = [c for number in ("1", "3") for c in cells(item("table", number)) if c.model == "Vicuna-7B"]
    runs = command.run_requests(model_config("vicuna-7b"), own, command.ReproduceRequest(results=Path("x")))
    made = [(run.temperature, task, name) for run in runs for task in run.tasks for name in run.methods]
    wanted = {(c.temperature, c.task_here, c.method_here) for c in own if c.task != published.MEAN and c.method_here != "hydra"}
    assert len(made) == len(set(made)) and set(made) == wanted | {(t, task, "vanilla") for t, task, _ in wanted}
    where = [(run.temperature, task) for run in runs for task in run.tasks]
    assert len(where) == len(set(where)) == 12  # each task once a temperature: one baseline for all its methods


def test_methods_with_drafters_of_their_own_are_measured_where_the_model_has_them(tmp_path: Path) -> None:
    bare = tiny_copy(tmp_path / "bare", drafters="{}")
    for yaml, names in ((TINY, {"vanilla", "sps", "lookahead", "medusa", "eagle1", "eagle2"}),
                        (bare, {"vanilla", "lookahead", "eagle1", "eagle2"})):  # fmt: skip
        out = tmp_path / f"out-{len(names)}"
        done = harness(
            f"reproduce --figure 2 {SMALL.replace(str(TINY), str(yaml))} --max-new-tokens 6 --limit 1 --json --results", out
        )
        assert done.code == 0, done.err
        assert {r["method"] for r in counted(out)} == names
        words = {row["method"]: row["verdict"].split(":")[0] for row in done.value}
        assert words == {
            m: "not comparable" if m in names else "not measured" for m in ("sps", "lookahead", "medusa", "eagle1", "eagle2")
        }


def test_a_model_that_lacks_something_is_left_out_and_the_rest_is_reported(tmp_path: Path) -> None:
    done = harness("reproduce --table 3 --model vicuna-7b --results", tmp_path)
    assert done.code == 2 and "vicuna-7b is left out: missing: weights of vicuna-7b" in done.err
    assert done.err.splitlines()[-1].startswith("error: not measured: vicuna-7b")
    assert "not measured" in done.out and not list(tmp_path.glob("*.jsonl"))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Table 3 and figures 5 and 6 on the tiny model."""
    out = tmp_path_factory.mktemp("reproduced")
    done = harness(f"reproduce --table 3 --figure 5 --figure 6 {SMALL} --limit 5 --json --results", out)
    assert done.code == 0, done.err
    return out, done.out


SMALL = f"--model {TINY} --source bundled --max-new-tokens 10 --dtype float32 --threads 1"


def test_it_measures_the_items_cells_and_drafted_trees_and_nothing_twice(reproduced: tuple[Path, str]) -> None:
    out, _ = reproduced
    methods = {(r["method"], r["task"]) for r in counted(out)}
    of_table = {(m, t) for m in ("vanilla", "eagle2", "eagle2-no-value", "eagle2-no-rerank", "eagle2-no-both")
                for t in ("mt_bench", "gsm8k")}  # fmt: skip
    assert methods == of_table | {("vanilla", "alpaca"), ("eagle1", "alpaca")}
    before = {name: data for name, data in files(out).items() if "tables" not in str(name)}
    again = harness(f"reproduce --table 3 --figure 5 --figure 6 {SMALL} --limit 5 --results", out)
    assert again.code == 0 and "nothing to measure" in again.err
    assert {name: data for name, data in files(out).items() if "tables" not in str(name)} == before


def test_it_prints_and_writes_every_cell_with_a_verdict(reproduced: tuple[Path, str]) -> None:
    out, printed = reproduced
    rows = json.loads(printed.splitlines()[-1])
    table = [row for row in rows if row["item"] == "table 3"]
    assert len(table) == 8 and all(row["tau"] >= 1 and row["tau_low"] is not None for row in table)
    assert {row["verdict"] for row in table} == {
        "not comparable: tiny is not a model of the paper; bundled prompts; at most 10 new tokens, not 64"
    }
    positions = {row["at"]: row for row in rows if row["item"] == "figure 5" and row["kind"] == "position"}
    assert set(positions) == {"P1", "P2", "P3", "P4", "P5", "P6"} and positions["P1"]["value"] > positions["P6"]["value"]
    names = {path.name for path in (out / "tables").iterdir()}
    assert {f"{stem}.{end}" for stem in ("table3", "figure5", "figure6") for end in ("md", "csv")} <= names
    assert "Figure 6: tiny, eagle1 on alpaca" in printed and "ECE" in printed


def test_without_a_run_it_reports_all_items_from_what_is_there(reproduced: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = reproduced
    before = files(out)
    done = harness(f"reproduce --no-run --model {TINY} --results", out, "--out", tmp_path / "tables")
    assert done.code == 0, done.err
    written = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert written == {"table1", "table2", "table3", "figure1", "figure2", "figure5", "figure6"}
    assert files(out) == before


def test_bars_are_drawn_where_something_was_measured_and_only_then(tmp_path: Path) -> None:
    bar = cell("EAGLE-2", "MT-bench", "1")
    for o in (None, ours(speed=3.6)):
        drawn = write_bars(
            judged_table(item("figure", "2"), [judge(bar, VICUNA, o), judge(cell("Medusa"), VICUNA, None)]).numbers,
            tmp_path / "figure2",
        )
        assert [path.name for path in drawn] == (["figure2.png"] if o else [])
        assert all(path.stat().st_size > 1000 for path in drawn)


def test_figures_of_drafts_without_trees_say_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = harness("reproduce --no-run --figure 5 --figure 6 --model vicuna-7b --results", tmp_path / "none", "--out", tmp_path)
    assert done.code == 0 and all(f"not measured: `harness reproduce --model vicuna-7b --figure {n} " in done.out for n in "56")


def test_without_a_run_a_folder_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    refused(harness("reproduce --no-run --results", tmp_path / "none"), f"there is no {tmp_path / 'none'}")
    assert not list(tmp_path.iterdir())


def test_tables_and_figures_asked_for_together_keep_the_trees_at_the_first_run(tmp_path: Path) -> None:
    done = harness(f"reproduce --table 1 --figure 5 {SMALL} --max-new-tokens 6 --limit 1 --json --results", tmp_path)
    assert done.code == 0, done.err
    positions = [row for row in done.value if row["item"] == "figure 5" and row["kind"] == "position"]
    assert positions and all(row["n"] for row in positions)
    with gzip.open(next((tmp_path / "trees").iterdir())) as kept:
        assert kept.read()


def test_a_dry_run_of_several_items_counts_a_cell_once(tmp_path: Path) -> None:
    def together(words: str) -> int:
        out = harness(f"reproduce {words} --model vicuna-7b --dry-run --results", tmp_path).out
        (once,) = [int(line.split()[1]) for line in out.splitlines() if line.startswith("together: ")]
        return once

    # vanilla and EAGLE-2 on MT-bench at T = 0 are in both
    assert together("--table 3 --figure 2") == together("--table 3") + together("--figure 2") - 2 * 160


@pytest.mark.parametrize(
    ("change", "said"),
    [({"system": "none"}, "no system prompt"), ({"system": "Be brief."}, "another system prompt"), ({"top_p": 0.9}, "top-p 0.9"),
     ({"prompts_sha": PAPER_FILES["qa/question.jsonl"]}, "a prompt file that is not the authors'")],
)  # fmt: skip
def test_what_is_not_as_in_the_paper_makes_every_cell_not_comparable(change: dict[str, Any], said: str) -> None:
    as_there = {"prompts_sha": PAPER_FILES["gsm8k/question.jsonl"], "source": "paper"}

    def judged(record: Any, of: PaperCell) -> str:
        return verdict(ours(), of, reported_model("vicuna-7b", "Vicuna-7B", 512, [record]))

    assert judged(measured("eagle2", 0, [0] * 9, **as_there), cell()) == "τ and speed reproduced"
    other = measured("eagle2", 0, [0] * 9, **(as_there | change))
    assert judged(other, cell()) == judged(other, cell(task=published.MEAN)) == f"not comparable: {said}"
    is_of_one_task = "prompts_sha" in change
    assert judged(other, cell(task="Alpaca")).startswith("not comparable") is not is_of_one_task


def test_a_baseline_that_is_knowingly_another_is_marked_and_explained() -> None:
    sps = cell("SpS")
    (tau,), (speed,) = sps.tau[:1], sps.speedup[:1]
    judged = judge(sps, VICUNA, ours(tau=tau.value, speed=speed.value))
    assert judged.verdict == "τ and speed reproduced †"
    shown = markdown(judged_table(item("table", "1"), [judged]))
    assert "† sps: the paper ran Hugging Face's assisted generation" in shown and "† pld" not in shown


def test_every_measured_cell_shows_its_speed_taken_apart() -> None:
    shown = markdown(judged_table(item("table", "1"), [judge(cell(), STAND_IN, ours(tau=2.0, decode_speedup=1.43))]))
    assert "1.43 = 2.00 / (1.10 + 0.20 + 0.10)" in shown


def test_without_a_baseline_the_verdict_says_so() -> None:
    assert verdict(ours(speedup=Estimate(None, None, 0))).endswith("speed not judged (no baseline was measured)")


def test_another_head_is_refused_before_anything_is_measured(reproduced: tuple[Path, str], tmp_path: Path) -> None:
    head = tmp_path / "head"
    shutil.copytree(TINY.parent / "head", head)
    state = load_file(head / "model.safetensors")
    save_file({name: value * 1.5 for name, value in state.items()}, head / "model.safetensors")
    file = head / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "weights_sha256"}))
    before = (reproduced[0] / "records.jsonl").read_bytes()
    done = harness(f"reproduce --table 3 {SMALL} --limit 6 --head {head} --out {tmp_path} --results", reproduced[0])
    assert done.code == 2 and "with head_sha" in done.err and "cannot be judged together" in done.err
    assert (reproduced[0] / "records.jsonl").read_bytes() == before


def test_another_head_is_refused_on_a_cluster_too(reproduced: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def carry_out(config: Any, runs: Any, over: Any, check: Any) -> None:
        check({None: {"dtype": "float32"}, "eagle": {"head_sha": "another"}})  # as a worker tells it when it is there
        raise AssertionError("it is measured")

    monkeypatch.setattr(command, "carry_out", carry_out)
    done = harness(f"reproduce --table 3 {SMALL} --limit 6 --ray local --results", reproduced[0])
    assert done.code == 2 and "with head_sha" in done.err and "cannot be judged together" in done.err


def test_every_task_and_method_of_the_paper_that_is_here_is_named_as_here() -> None:
    assert tuple(published.TASKS.values()) == SIX_TASKS
    assert set(published.METHODS.values()) <= set(methods.names())


def test_a_range_in_the_text_is_read_as_two_numbers() -> None:
    (span,) = the_paper("speedup_range")
    (gain,) = the_paper("relative_gain")
    assert isinstance(span, Number) and (span.values, gain.values) == ((3.05, 4.26), (20.0, 40.0))
