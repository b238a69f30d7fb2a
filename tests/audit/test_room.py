"""What of a target is judged where memory is short: the whole, its first layers, or nothing, and a row says so."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import Outcome, harness, isolate, refused, tiny_copy
from places import TINY
from row_by_row import run_on
from safetensors.torch import load_file, save_file
from tiny_model import shared_tiny_model

from harness.audit import layers as planning
from harness.audit import page
from harness.audit.audit import _of_included, audit
from harness.audit.faults.bench import Bench, run_mutant
from harness.audit.faults.faults import MUTANTS, Mutant
from harness.audit.jobs import Stage
from harness.audit.keeper import Origin
from harness.audit.levels import LEVELS
from harness.audit.prepare import computed_here, score_dtype
from harness.audit.probe import lanes, replay
from harness.audit.probe.subject import Subject
from harness.audit.request import AuditRequest
from harness.audit.room import Fit, fit, needed, rooms_for, text_length
from harness.audit.verdicts.acceptance import acceptance_verdicts
from harness.audit.verdicts.verdict import Verdict, said_on
from harness.common.errors import UserError
from harness.load import model as load_model
from harness.load import placement, preflight
from harness.load.architecture import Architecture
from harness.load.config import model_config
from harness.load.kinds import KINDS
from harness.load.model import load
from harness.load.placement import WORKSPACE, Need
from methods import get
from methods.base import SamplerParams
from methods.engine.draft_head import EagleHead, HeadConfig
from methods.engine.llama import LlamaTarget
from methods.engine.native.target import NativeTarget
from methods.engine.target import HFTarget

GB = 10**9
CONFIG = model_config(str(TINY))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(page.figures, "draw_all", lambda *args: [])
    monkeypatch.setattr("harness.audit.prepare.resolve_dtype", lambda _: "bfloat16")


# ---- the choice ----


def chosen(name: str, free: int, monkeypatch: pytest.MonkeyPatch, device: str = "cuda", gpus: int = 1) -> dict[str, Fit]:
    """dtype -> the choice for a preset with `free` GB free on each GPU, or on a machine without any."""
    monkeypatch.setattr("harness.audit.room.device", lambda: torch.device(device))
    monkeypatch.setattr(placement, "free_on_gpus", lambda: [free * GB - WORKSPACE] * gpus)
    monkeypatch.setattr(preflight, "free_memory", lambda: free * GB)
    config = model_config(name)
    assert config.architecture is not None
    dtypes, kinds = ("float16", "float32", "float64"), ("eagle", "medusa", "hydra", "lm")
    found = rooms_for(config, config.architecture, dtypes, level=LEVELS["quick"], kinds=kinds, measured=["float16"])
    return {dtype: room.fit for dtype, room in found.items()}


@pytest.mark.parametrize("name", ["vicuna-7b", "llama3-instruct-8b"])
@pytest.mark.parametrize(
    ("free", "layers"),  # in float16, float32 and float64
    [(80, (32, 32, 32)), (40, (32, 32, {"vicuna-7b": 16, "llama3-instruct-8b": 8})), (24, (32, 16, 4)), (16, (0, 8, 2)),
     (8, (0, 1, 0))],
)  # fmt: skip
def test_memory_decides_what_of_the_papers_smallest_targets_is_judged(
    name: str, free: int, layers: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = chosen(name, free, monkeypatch)
    wanted = [n[name] if isinstance(n, dict) else n for n in layers]
    assert [f.layers for f in found.values()] == wanted and {f.of for f in found.values()} == {32}
    assert found["float64"].needed > 8 * model_config(name).architecture.n_parameters  # type: ignore[union-attr]


def test_a_cpu_that_packs_its_weights_and_several_gpus_are_counted_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = (chosen("vicuna-7b", 40, monkeypatch, device) for device in ("cuda", "cpu"))
    assert gpu["float32"].layers == 32 and cpu["float32"].layers == 16  # it is there twice
    assert cpu["float64"].needed == gpu["float64"].needed
    two = chosen("vicuna-7b", 40, monkeypatch, gpus=2)
    assert [f.layers for f in two.values()] == [32, 32, 32]


def test_a_cut_target_fits_and_has_a_power_of_two_of_layers() -> None:
    what = Need(first=10, layer=7, last=20, n_layers=30, embedding=10)
    for room in range(0, 300):
        found = fit(what, [room], may_cut=True)
        assert found.layers in (0, 1, 2, 4, 8, 16, 30)
        if found.layers:
            assert 30 + 7 * found.layers <= room
        else:
            assert room < 37
        assert (fit(what, [room], may_cut=False).layers == 30) is (room >= 240)
    assert fit(what, [36], may_cut=True).words == "not even one of 30 layers fits: it would need 0.0 GB of 0.0 GB free"
    assert fit(what, [240], may_cut=True).words == "" and fit(what, [-5], may_cut=True).free == 0


def test_drafters_take_what_they_take_in_the_dtype_that_they_are_loaded_in(tmp_path: Path) -> None:
    """Published heads are stored in 16 bits; in float64 they take four times as much."""
    sizes = model_config("vicuna-7b").architecture
    assert sizes is not None
    for kind in ("medusa", "lm", "hydra"):
        half, double = (KINDS[kind].memory_bytes(None, sizes, dtype, 2048) for dtype in ("float16", "float64"))
        assert double == 4 * half > 0
        folder = TINY.parent / {"lm": "sps"}.get(kind, kind)
        own = KINDS[kind].memory_bytes(folder, sizes, "float64", 2048)
        drafter = shared_tiny_model("float64").loaded.drafter_of(kind)
        assert drafter is not None and own == 8 * sum(t.numel() for t in stored(folder))
    pickle = tmp_path / "head"
    pickle.mkdir()
    (pickle / "config.json").write_text("{}")
    (pickle / "pytest.pt").write_bytes(b"x" * 100)
    (pickle / "medusa_lm_head.pt").write_bytes(b"x" * 1000)
    assert KINDS["medusa"].memory_bytes(pickle, sizes, "float32", 1) == 4 * (500 + 50)


def stored(folder: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return [t for file in folder.glob("*.safetensors") for t in load_file(file).values()]


def test_what_an_audit_needs_grows_with_its_texts_and_its_vocabulary() -> None:
    sizes = model_config("llama3-instruct-8b").architecture
    assert sizes is not None
    config, level = model_config("llama3-instruct-8b"), LEVELS["quick"]
    assert text_length(config, level, in_ledger=True) == 8192 > text_length(config, level, in_ledger=False)
    short, long = (needed(sizes, "float64", n, level, {}, on_cpu=False).total for n in (512, 1024))
    assert long - short == 8 * 32 * sizes.n_kv(512) + 3 * 8 * 32 * (1024**2 - 512**2)
    small = sizes.model_copy(update={"vocab_size": 1000})
    rows = 10 * 8 * level.most_tokens * (sizes.vocab_size - 1000)
    least = (
        needed(sizes, "float32", 512, level, {}, on_cpu=False).last - needed(small, "float32", 512, level, {}, on_cpu=False).last
    )
    assert least == rows + 4 * 4096 * (sizes.vocab_size - 1000)


# ---- a target cut to its first layers ----


def test_the_first_layers_of_a_target_are_loaded_alone() -> None:
    whole, cut = (load(CONFIG, "float64", layers=layers) for layers in (None, 1))
    assert len(whole.target.body.layers) == 2 and len(cut.target.body.layers) == 1
    with whole.target.shallow([0]):
        wanted = whole.target.prefill([5, 6, 7], 1)
    assert all(torch.equal(a, b) for a, b in zip(wanted, cut.target.prefill([5, 6, 7], 1), strict=True))
    assert cut.drafter is not None


@pytest.mark.parametrize("layers", [0, -1, 3])
def test_layers_that_it_does_not_have_are_refused(layers: int) -> None:
    with pytest.raises(UserError, match=f"layers is {layers}; tiny has 2, and at least one is run"):
        load(CONFIG, "float32", layers=layers)


def test_a_weight_of_no_layer_may_not_be_left_over(tmp_path: Path) -> None:
    """Of a cut target the other layers' are there and not read; any other would be one that is not understood."""
    yaml = tiny_copy(tmp_path / "model")
    file = yaml.parent / "target" / "model.safetensors"
    save_file(load_file(file) | {"extra.weight": torch.zeros(2)}, file, {"format": "pt"})
    for layers in (None, 1):
        with pytest.raises(UserError, match="unexpected keys in .*: extra.weight$"):
            load(model_config(str(yaml)), "float32", drafters=(), layers=layers)


def test_only_weights_beyond_the_cut_may_be_left_over() -> None:
    assert [load_model._is_beyond(f"model.layers.{i}.mlp.up_proj.weight", 2) for i in (1, 2, 11)] == [False, True, True]
    assert not load_model._is_beyond("model.layers.9x.weight", 2) and not load_model._is_beyond("extra.weight", 2)


FEW = ("8", "14", "16", "18", "20", "22", "24")  # of rules, rows, positions, caches, budgets and heads; the others take longer
NOTICED_ON_A_PART = [
    m if m.number in FEW else pytest.param(m, marks=pytest.mark.slow)
    for m in MUTANTS
    if {"L2", "L3", "L4", "L5"} & {*m.killers, *m.given_tokens}
]


@pytest.fixture(scope="module")
def cut_bench() -> Bench:
    return Bench(load(CONFIG, "float32", layers=1), LEVELS["quick"], layers_run=1)


@pytest.mark.parametrize("mutant", NOTICED_ON_A_PART, ids=lambda m: f"{m.number} {m.what}")
def test_a_planted_fault_is_noticed_on_a_part_of_the_target(mutant: Mutant, cut_bench: Bench) -> None:
    outcome = run_mutant(cut_bench, mutant)
    assert outcome.right, outcome.seen


def test_a_whole_method_holds_on_a_part_of_the_target(cut_bench: Bench) -> None:
    assert cut_bench.l2(cut_bench.healthy).what is None and cut_bench.l3(cut_bench.healthy).what is None
    assert cut_bench.l4(cut_bench.healthy).what is None and cut_bench.l5(cut_bench.healthy).what is None
    # the head was trained for the whole: of its tau nothing is said, or whatever is planted would count as noticed
    assert acceptance_verdicts(cut_bench.runs(cut_bench.healthy), {}) == []


# ---- the whole audit ----


def needed_here(dtype: str) -> Fit:
    """What the tiny model takes in a dtype, with every drafter of the methods below."""
    sizes = Architecture.of(TINY.parent / "target")
    assert sizes is not None
    kinds = ("eagle", "medusa")
    return rooms_for(CONFIG, sizes, [dtype], level=LEVELS["quick"], kinds=kinds)[dtype].fit


def limited(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_memory", lambda: free + WORKSPACE)


COMMAND = f"verify --model {TINY} --threads 1 --method eagle2 --method medusa --json"


def rows_of(done: Outcome) -> dict[tuple[str, str], dict[str, Any]]:
    (rows,) = (json.loads(line) for line in done.out.splitlines() if line.startswith("[{"))
    return {(r["layer"], r["method"]): r for r in rows}


@pytest.fixture
def without_layer_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs no model, and takes as long as all that does."""
    monkeypatch.setattr(planning, "law_stage", lambda scope, s: Stage(f"L1 {s.name}", ""))


@pytest.fixture
def double_is_cut(monkeypatch: pytest.MonkeyPatch) -> str:
    """Memory in which float32 and bfloat16 fit whole, and float64 does not; -> what is said of it."""
    free = needed_here("float64").needed - 1
    assert free > max(needed_here(dtype).needed for dtype in ("float32", "bfloat16"))
    limited(free, monkeypatch)
    return "on the first 1 of 2 layers: the whole would need 0.0 GB of 0.0 GB free"


def test_a_target_that_does_not_fit_in_float64_is_judged_on_its_first_layers(
    double_is_cut: str, without_layer_1: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = harness(COMMAND, "--out", tmp_path)
    assert done.code == 0, done.err
    rows = rows_of(done)
    for key, row in rows.items():
        assert row["on"] == (double_is_cut if "float64" in key[0] and row["passed"] is not None else ""), key
    assert rows["L3 greedy equality, float64", "eagle2"]["passed"] is True
    assert rows["L2 logit replay, float64", "medusa"]["passed"] is True
    # before anything is loaded
    assert f"float64: {double_is_cut}" in done.err.split("loading")[0] and "float32: the whole target, " in done.err
    assert "in float64, its first 1 of 2 layers ..." in done.err
    word = json.loads((tmp_path / "lossless.json").read_text())
    assert word["methods"]["eagle2"] == word["methods"]["medusa"] == "lossless (quick)" and word["cut"] == {
        "float64": double_is_cut
    }
    said = (tmp_path / "audit.md").read_text()
    assert said.count(f", {double_is_cut} |") >= 4 and double_is_cut in (tmp_path / "audit.csv").read_text()
    found = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {f.get("layers") for f in found if f.get("dtype") == "float64"} == {1}
    assert not any("layers" in f for f in found if f.get("dtype") != "float64")
    again = harness(COMMAND, "--out", tmp_path)
    assert "already: nothing to run" in again.err
    limited(10**12, monkeypatch)  # what was found on a part does not pass for the whole
    whole = harness(COMMAND, "--out", tmp_path)
    assert whole.code == 0 and "nothing to run" not in whole.err and not any(r["on"] for r in rows_of(whole).values())


def test_a_target_of_which_not_even_one_layer_fits_is_not_judged_in_that_dtype(
    without_layer_1: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(needed_here("float64").least - 1, monkeypatch)
    done = harness(COMMAND, "--out", tmp_path)
    refused(done, "not judged: all of float64: not even one of 2 layers fits: it would need 0.0 GB of 0.0 GB free")
    rows = rows_of(done)
    assert rows["L3 greedy equality, float32", "eagle2"]["passed"] is True and "in float64" not in done.err
    assert json.loads((tmp_path / "lossless.json").read_text())["methods"]["eagle2"] == "open"


def test_where_nothing_fits_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(1000, monkeypatch)
    done = harness(COMMAND, "--out", tmp_path)
    refused(done, "tiny cannot be judged here: float32: not even one of 2 layers fits", "bfloat16: the whole would need")
    planted = harness(f"verify --mutants --threads 1 --model {TINY} --out", tmp_path)
    refused(planted, "model tiny in float32: not even one of 2 layers fits")


def test_the_dtype_in_which_runs_measure_the_model_is_judged_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(needed_here("bfloat16").needed - 1, monkeypatch)
    done = harness(COMMAND, "--dtype bfloat16 --out", tmp_path)
    refused(done, "a dtype in which runs measure the model is not judged on a part of it")


def test_acceptance_is_not_judged_on_a_part_of_the_target() -> None:
    found = {
        "kind": "greedy",
        "dtype": "float32",
        "method": "eagle2",
        "emitted": 10,
        "forwards": 10,
        "has_head": True,
        "prompt": "p",
    }
    assert acceptance_verdicts([found | {"layers": 1}], {}) == []
    [row] = acceptance_verdicts([found], {})
    assert row.passed is False  # nothing accepted, of a head that was trained for this target


def test_rows_of_a_part_say_so_where_they_were_judged() -> None:
    def row(layer: str, passed: bool | None) -> Verdict:
        return Verdict(layer, "eagle2", "1 output", "", "", "", passed)

    rows = [row("L4 score test, T > 0, float32", True), row("L3, bfloat16", True), row("L2, float32", None), row("L1", True)]
    assert [v.on for v in said_on(rows, {"float32": "on a part"})] == ["on a part", "", "", ""]
    shown = page.overview(said_on(rows[:1], {"float32": "on a part"})).shown
    assert shown.iloc[0]["checked"] == "1 method, on a part"


# ---- the score test ----


@pytest.mark.parametrize(
    ("dtypes", "ledger", "taken"),
    [
        (("float32", "float64", "float16"), (), "float16"),  # in which runs measure the model
        (("float32", "float64"), (), "float32"),
        (("bfloat16",), (), "bfloat16"),
        (("float32", "float64", "float16"), ("float32",), "float32"),  # the ledger's own
        (("float32", "bfloat16", "float16"), ("float16", "bfloat16"), "float16"),
    ],
)
def test_the_score_test_runs_in_the_ledgers_own_dtype(dtypes: tuple[str, ...], ledger: tuple[str, ...], taken: str) -> None:
    pairs: Any = [SimpleNamespace(dtype=dtype) for dtype in ledger]
    assert score_dtype(dtypes, "float16", pairs) == taken


def test_the_measured_dtype_is_judged_unasked_on_any_engine(
    without_layer_1: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU no engine is row-invariant, and a target of the paper is measured in float16."""
    run_on(monkeypatch, LlamaTarget)
    done = harness(f"verify --model {TINY} --threads 1 --method pld --json --out", tmp_path)
    assert done.code == 0, done.err
    rows = rows_of(done)
    for layer in ("L3 greedy equality, bfloat16", "L4 score test, T > 0, bfloat16", "L4 own draws, T > 0, bfloat16"):
        assert rows[layer, "pld"]["passed"] is True
    assert ("L4 score test, T > 0, float32", "pld") not in rows
    assert json.loads((tmp_path / "lossless.json").read_text())["methods"]["pld"] == "lossless (quick)"


def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(dtype: str) -> str:
        if dtype in ("auto", "bfloat16"):  # the first stands for a YAML that says the second
            raise UserError("bfloat16: Tesla T4 does not compute in it")
        return dtype

    monkeypatch.setattr("harness.audit.prepare.resolve_dtype", resolved)


def test_a_gpu_that_cannot_run_the_models_own_dtype_judges_those_that_are_asked_for(
    without_layer_1: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_bfloat16(monkeypatch)
    command = f"verify --model {TINY} --threads 1 --method pld --json --out {tmp_path}"
    refused(harness(command), "bfloat16: Tesla T4 does not compute in it")
    done = harness(command, "--dtype float32")
    assert done.code == 0, done.err
    rows = rows_of(done)
    assert rows["L3 greedy equality, float32", "pld"]["passed"] is True
    assert rows["the dtype of runs", "all"]["why"] == "bfloat16: Tesla T4 does not compute in it"


def test_a_dtype_of_the_level_that_the_device_lacks_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    without_bfloat16(monkeypatch)
    rows: list[Verdict] = []
    assert computed_here(LEVELS["full"].dtypes, rows) == ["float32", "float64"]
    assert [(v.layer, v.blocks) for v in rows] == [("all of bfloat16", False)]


def test_plain_decodings_speed_is_not_taken_where_the_whole_target_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes would load it side by side."""
    paced: list[str] = []

    def pace(model: str, dtype: str, *_: Any) -> Any:
        paced.append(dtype)
        raise UserError("busy")

    monkeypatch.setattr("harness.watch.pace.pace", pace)
    request = AuditRequest(model=str(TINY), methods=("pld",), includes=(Path("mine.py"),))
    (_, row) = _of_included(request, "float64", {"float64": "on the first layer"})
    assert row.passed is None and not row.blocks and "on the first layer" in row.why and not paced
    assert "busy" in _of_included(request, "float32", {"float64": "on the first layer"})[1].why and paced == ["float32"]


# ---- memory ----


@pytest.mark.parametrize("engine", [pytest.param(NativeTarget, marks=pytest.mark.slow), LlamaTarget])  # with lanes on the second
def test_nothing_of_a_dtypes_models_is_left_when_the_next_is_loaded(
    engine: type[HFTarget], without_layer_1: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets, their modules and weights, and every drafter: two models need not fit side by side."""
    kept, real, n = list[weakref.ref[Any]](), load_model.load, list[int]()

    def loading(*args: Any, **more: Any) -> Any:
        n.append(len([ref for ref in kept if ref() is not None]))
        loaded = real(*args, **more)
        parts = [loaded.target, loaded.target.model, loaded.target.embedding]
        parts += [one.drafter for one in loaded.drafters.values()]
        kept.extend(map(weakref.ref, parts))
        return loaded

    monkeypatch.setattr(load_model, "load", loading)
    run_on(monkeypatch, engine)
    request = AuditRequest(model=str(TINY), methods=("eagle2", "medusa", "hydra", "sps"), threads=1, out=tmp_path)
    report = audit(request, tell=lambda _: None)
    assert {"float32", "float64", "bfloat16"} <= {v.layer.split(", ")[-1] for v in report.rows}
    assert n == [0] * 3 and len(kept) == 3 * 7


# ---- a GPU ----


def test_the_law_of_a_head_is_made_where_the_head_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's `meta` device stands for a GPU: a copy to the CPU fails there, and so does an operation over both."""
    head = EagleHead(HeadConfig(32, 48, 4, 2, 1e-6, 1e4, 64)).to("meta", torch.float16)
    embedding, lm_head = (
        torch.empty(64, 32, device="meta", dtype=torch.float16),
        torch.nn.Linear(32, 64, False, "meta", torch.float16),
    )
    seen: list[torch.Tensor] = []

    def law(logits: torch.Tensor, *_: float) -> torch.Tensor:
        seen.append(logits)
        return torch.zeros(logits.shape)

    monkeypatch.setattr(replay, "probabilities", law)
    monkeypatch.setattr("torch.fx.experimental._config.meta_nonzero_assume_all_nonzero", True)
    target = SimpleNamespace(lm_head=lm_head, dtype=torch.float16, device=torch.device("cpu"))  # of the first of several GPUs
    drafter = SimpleNamespace(head=head, embedding=embedding, device=embedding.device)
    loaded: Any = SimpleNamespace(target=target, drafter_of=lambda kind: drafter)
    run = replay.Replayed([1, 2, 3], [4, 5], torch.zeros(2, 64), torch.zeros(2, 64), features=embedding[:4])
    assert replay.head_law(loaded, run, SamplerParams(2, temperature=1.0)).shape == (2, 64)
    assert seen[0].shape == (2, 64) and seen[0].device.type == "meta"


def test_no_lanes_run_on_a_gpu() -> None:
    tiny = shared_tiny_model("float32").loaded
    model = SimpleNamespace(device=torch.device("cuda"))
    on_gpu: Any = SimpleNamespace(target=SimpleNamespace(model=model, device=model.device))
    subject = Subject.of(get("vanilla"), tiny.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "target_type", lambda *_: LlamaTarget)
        assert lanes.can_run_in_lanes(tiny, subject, "float16") and not lanes.can_run_in_lanes(on_gpu, subject, "float16")


def test_weights_are_read_straight_onto_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way through the machine's own memory a target of 8B would take 64 GB of it in float64."""
    folder = TINY.parent / "target"
    monkeypatch.setattr(load_model, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(placement, "free_on_gpus", lambda: [GB])
    placed = load_model._placed(folder, "float64", {}, None, 512)
    assert placed == {"": torch.device("cuda")}
    what = needed_here("float64")
    monkeypatch.setattr(placement, "free_on_gpus", lambda: [1_300_000, 1_300_000])  # whole over two, a layer on one
    assert {str(d) for d in load_model._placed(folder, "float64", {}, None, 512).values()} == {"cuda:0", "cuda:1"}
    assert load_model._placed(folder, "float64", {}, 1, 512) == {"": torch.device("cuda")} and what.of == 2
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)  # several processes, each with a GPU of its own
    monkeypatch.setattr(placement, "free_on_gpu", {1: GB}.__getitem__)
    assert load_model._placed(folder, "float64", {}, None, 512, on_one_gpu=True) == {"": torch.device("cuda", 1)}
    monkeypatch.setattr(placement, "free_on_gpu", {1: 1_300_000}.__getitem__)
    with pytest.raises(UserError, match="do not fit on 1 GPU with"):
        load_model._placed(folder, "float64", {}, None, 512, on_one_gpu=True)
    read = load_model._target_model(CONFIG, folder, "float64", {"": torch.device("cpu")})
    assert read.dtype == torch.float64 and not hasattr(read.model, "_hf_hook")


def test_findings_of_a_part_are_not_those_of_the_whole() -> None:
    loaded = shared_tiny_model("float32").loaded
    whole, cut = Origin.of(loaded, 1, ("float64",)), Origin.of(loaded, 1, ("float64",), {"float64": 1})
    subject, prompt = Subject.of(get("pld"), loaded.config), ("p", [1, 2])
    abouts = [origin.about("greedy", subject, "float64", prompt, 4) for origin in (whole, cut)]
    assert abouts[1] == abouts[0] | {"layers": 1}
