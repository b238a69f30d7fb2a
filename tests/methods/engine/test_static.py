"""Steps of fixed shapes, on a CPU: the same trees, outputs and traces as the dynamic ones, for every method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import harness, isolate
from places import TINY
from pretended_graphs import pretend
from random_llamas import module_of
from tiny_model import TinyModel, fresh_tiny_model

import methods
from harness.load import model as load_model
from harness.run.runner import Runner
from harness.watch import run as run_watch
from harness.watch.check import BadGeneration
from methods.base import SamplerParams
from methods.engine.engines import n_recordings, prepare
from methods.engine.llama import LlamaTarget
from methods.engine.static.drafter import StaticEagleDrafter
from methods.engine.static.replay import Replayer, bucket
from methods.engine.static.target import ROWS, StaticTarget, visible
from methods.engine.tree import Tree

NAMES = [n for n in methods.names() if not methods.get(n).external]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    found = {}
    for engine in ("torch", "static"):
        with pytest.MonkeyPatch.context() as m:
            isolate(m, tmp_path_factory.mktemp(engine))
            m.setenv("HARNESS_ENGINE", engine)
            found[engine] = fresh_tiny_model("float32")
    return found


def test_the_engine_is_taken_where_it_is_asked_for(engines: dict[str, TinyModel]) -> None:
    loaded = engines["static"].loaded
    assert type(loaded.target) is StaticTarget and loaded.target.engine == "lean static"
    assert type(loaded.drafter_of("eagle")) is StaticEagleDrafter
    assert type(engines["torch"].loaded.target) is LlamaTarget


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_trees_outputs_and_traces_are_the_same(name: str, temperature: float, engines: dict[str, TinyModel]) -> None:
    options: dict[str, Any] = {"frequent": 200} if name == "eagle2-fr" else {}
    for i, prompt in enumerate(engines["torch"].prompts[:3]):
        params = SamplerParams(40, temperature=temperature, key=i, keep_trees=name != "vanilla")
        found = [engines[engine].decode(name, prompt, params, **options) for engine in ("torch", "static")]
        assert found[0].token_ids == found[1].token_ids
        traces = [made.trace for made in found]
        assert traces[0] and traces[1]
        assert (traces[0].tree_size, traces[0].accepted) == (traces[1].tree_size, traces[1].accepted)
        shapes = [[(t.tokens, t.parents, t.path) for t in trace.trees] for trace in traces if trace]
        assert shapes[0] == shapes[1] and (name == "vanilla" or shapes[0])


def test_what_a_row_sees_is_the_text_and_what_is_said_of_its_own() -> None:
    sees = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()
    found = visible(sees, torch.tensor(4), 9)
    assert found.int().tolist() == [[1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 1, 0, 0]]


@pytest.mark.parametrize("n", [1, 2, 8, 9, 60, 128, 129])
def test_trees_of_any_size_have_the_logits_of_the_dynamic_forward(n: int) -> None:
    static, plain = StaticTarget(module_of("tiny", torch.float32)), LlamaTarget(module_of("tiny", torch.float32))
    parents = [-1] + [(i - 1) // 2 for i in range(1, n)]
    tree = Tree([(7 * i) % static.vocab_size for i in range(n)], parents)
    path = [0, 2] if n > 2 else [0]
    for text in (3, 250, 251, 300):  # over the ends of the keys that are read at a time
        results = []
        for target in (static, plain):
            ids = [(3 * i) % static.vocab_size for i in range(text)]
            target.prefill(ids, 300)
            features, logits = (x.clone() for x in target.verify(tree))
            target.commit(path)
            results.append((features, logits, target.step(5).clone()))
        for a, b in zip(*results, strict=True):
            assert a.shape == b.shape and float((a - b).abs().max()) < 1e-4


def test_a_later_prompt_and_fewer_layers_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    target, plain = (kind(copy.deepcopy(module_of("tiny", torch.float32))) for kind in (StaticTarget, LlamaTarget))
    pretend(monkeypatch, target)
    for text, room in (([1, 2, 3], 20), (list(range(3, 203)), 900), ([9, 8], 5)):
        for t in (target, plain):
            t.prefill(text, room)
        assert float((target.step(4) - plain.step(4)).abs().max()) < 1e-4
    for layers in ([0], [1], [0, 1]):
        with target.shallow(layers), plain.shallow(layers):
            for t in (target, plain):
                t.prefill([1, 2, 3], 9)
            assert float((target.step(4) - plain.step(4)).abs().max()) < 1e-4
    for t in (target, plain):
        t.prefill([1, 2, 3], 9)
    assert float((target.step(4) - plain.step(4)).abs().max()) < 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["vanilla", "eagle2", "eagle2-fr", "eagle2-no-rerank", "eagle1", "pld", "lookahead"])
def test_what_was_recorded_once_serves_every_step(
    name: str, temperature: float, engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a step is left in the function that was recorded in another one. A recording may be run more than once when it
    is made. Nothing is read that another has overwritten."""
    tiny = engines["static"]
    pretend(monkeypatch, tiny.loaded.target, tiny.loaded.drafter_of("eagle"))
    options: dict[str, Any] = {"frequent": 200} if name == "eagle2-fr" else {}
    for i, prompt in enumerate(tiny.prompts[:3]):
        params = SamplerParams(40, temperature=temperature, key=i, keep_trees=name != "vanilla")
        found, wanted = (engines[engine].decode(name, prompt, params, **options) for engine in ("static", "torch"))
        assert found.token_ids == wanted.token_ids and found.trace and wanted.trace
        confidences = [[tree.confidence for tree in made.trace.trees] for made in (found, wanted) if made.trace]
        for a, b in zip(*confidences, strict=True):
            assert a == b or a == pytest.approx(b, rel=1e-4)


def test_after_preparing_nothing_is_recorded_in_a_step(engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = engines["static"]
    target, drafter = tiny.loaded.target, tiny.loaded.drafter_of("eagle")
    pretend(monkeypatch, target, drafter)
    text = [tokens for p in tiny.prompts for tokens in p][:400]
    methods_there = ("vanilla", "eagle1", "eagle2", "eagle2-fr")
    options: dict[str, dict[str, Any]] = {"eagle2-fr": {"frequent": 200}}

    def decode(name: str, prompt: list[int], n: int) -> Any:
        return tiny.decode(name, prompt, SamplerParams(n), **options.get(name, {}))

    for name in methods_there:
        decode(name, tiny.prompts[0], 4)
    prepare(target, [drafter], len(text) + 120)
    made = n_recordings(target)
    assert made > 20  # buckets of rows times widths of keys
    for name in methods_there:
        for prompt in (tiny.prompts[0], text):
            decode(name, prompt, 120 if prompt is text else 9)
    assert n_recordings(target) == made
    for known in target.replayer._known:
        assert known[0] == "commit" or known[1] <= 64  # no bucket that no tree needs


def test_a_run_measures_no_generation_in_which_anything_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two-turn dialogues and answers that go on over several widths of keys: all of it is recorded before the first counts."""
    isolate(monkeypatch, tmp_path)
    monkeypatch.setenv("HARNESS_ENGINE", "static")
    made: list[tuple[int, bool]] = []
    inner, load, begin = run_watch.watched, load_model.load, Runner.run
    began: list[int] = []

    def loaded(*args: Any, **kwargs: Any) -> Any:
        found = load(*args, **kwargs)
        pretend(monkeypatch, found.target, found.drafter_of("eagle"))
        return found

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen = inner(*args, **kwargs)
        made.append((seen.n_recordings, bool(began)))
        return seen

    def run(self: Runner, *args: Any) -> int:
        began.append(n_recordings(self.loaded.target))
        return begin(self, *args)

    monkeypatch.setattr(load_model, "load", loaded)
    monkeypatch.setattr(run_watch, "watched", noted)
    monkeypatch.setattr(Runner, "run", run)
    done = harness(f"run --model {TINY} --method vanilla --method eagle2 --task mt_bench --source bundled "
                   f"--limit 1 --max-new-tokens 100 --threads 1 --dtype float32 --out {tmp_path / 'r'}")  # fmt: skip
    assert done.code == 0, done.err
    measured = [n for n, counts in made if counts]
    assert began[0] > 0 and len(measured) == 4 and not any(measured)
    assert any(n for n, counts in made if not counts)  # the warm-up's


def test_a_commit_is_right_also_in_the_step_that_records_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path whose rows move onto one another: moved twice it would be another."""
    target, plain = (kind(copy.deepcopy(module_of("tiny", torch.float32))) for kind in (StaticTarget, LlamaTarget))
    pretend(monkeypatch, target)
    tree = Tree(list(range(3, 11)), [-1, 0, 0, 2, 2, 4, 4, 6])
    for t in (target, plain):
        t.prefill([1, 2, 3], 40)
        t.verify(tree)
        t.commit([0, 2, 4, 6, 7])
    assert n_recordings(target) == 2
    assert float((target.step(9) - plain.step(9)).abs().max()) < 1e-4


def test_a_generation_in_which_something_was_recorded_is_made_again(
    engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = engines["static"]
    target = tiny.loaded.target
    pretend(monkeypatch, target)
    names, builds = run_watch.Names("t", "d"), list[int]()
    vanilla = methods.get("vanilla")

    def build() -> Any:
        builds.append(n_recordings(target))
        return vanilla.build()

    seen = run_watch.settled(build, tiny.prompts[0], target, None, SamplerParams(9), names)
    assert len(builds) == 2 and builds[1] > builds[0] and seen.n_recordings == 0
    assert len(seen.generation.token_ids) == 9

    def forgetful() -> Any:
        target.replayer.forget()
        return vanilla.build()

    with pytest.raises(BadGeneration, match="CUDA graphs were recorded while its clock ran"):
        run_watch.settled(forgetful, tiny.prompts[0], target, None, SamplerParams(9), names)


REFUSED = "CUDA error: operation not permitted when stream is capturing\nmore"


@pytest.mark.parametrize("when", [0, 3])
def test_what_cannot_be_recorded_runs_call_by_call_and_is_told_once(
    when: int, engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first recording on, or from a later one: of the target and its drafter, which are told as one."""
    tiny = engines["static"]
    target, drafter = tiny.loaded.target, tiny.loaded.drafter_of("eagle")
    pretend(monkeypatch, target, drafter)
    wanted = engines["torch"].decode("eagle2", tiny.prompts[0], SamplerParams(30)).token_ids
    record, n = Replayer._recorded, []

    def refuse(self: Replayer, compute: Any) -> Any:
        n.append(1)
        if len(n) > when:
            compute()
            raise RuntimeError(REFUSED)
        return record(self, compute)

    monkeypatch.setattr(Replayer, "_recorded", refuse)
    assert tiny.decode("eagle2", tiny.prompts[0], SamplerParams(30)).token_ids == wanted
    prepare(target, [drafter], 600)
    assert len(n) == when + 1 and not target.replayer.records and not drafter.replayer.records
    assert not target.replayer._known or when
    said = capsys.readouterr().err
    assert said.count("no CUDA graphs (CUDA error: operation not permitted when stream is capturing)") == 1
    assert len(said.splitlines()) == 1
    target.replayer.recording.refused = None


def test_buckets() -> None:
    assert [bucket(n, ROWS) for n in (1, 2, 9, 60, 128, 129)] == [1, 8, 16, 64, 128, None]


def test_a_drafter_in_a_wrapping_that_changes_it_is_asked_call_by_call(engines: dict[str, TinyModel]) -> None:
    tiny = engines["static"]

    class Backwards:
        """Gives the worst token for the best: nothing that it drafts is kept."""

        def __init__(self, drafter: Any):
            self.drafter = drafter

        def __getattr__(self, name: str) -> Any:
            return getattr(self.drafter, name)

        def root_logits(self) -> torch.Tensor:
            return -self.drafter.root_logits()

    decode, params = methods.get("eagle2").build(), SamplerParams(30)
    plain, spoilt = (
        decode(tiny.prompts[0], tiny.loaded.target, d, params)
        for d in (tiny.loaded.drafter_of("eagle"), Backwards(tiny.loaded.drafter_of("eagle")))
    )
    assert plain.trace and spoilt.trace and sum(spoilt.trace.accepted) == 0 < sum(plain.trace.accepted)
    assert plain.token_ids == spoilt.token_ids


def test_the_whole_draft_is_one_recording() -> None:
    with pytest.MonkeyPatch.context() as m:
        m.setenv("HARNESS_ENGINE", "static")
        tiny = fresh_tiny_model("float32")
    keys: list[Any] = []

    class Noting(Replayer):
        def __call__(self, key: Any, compute: Any) -> Any:
            keys.append(key)
            return compute()

    drafter = tiny.loaded.drafter_of("eagle")
    tiny.loaded.target.replayer, drafter.replayer = (Noting(torch.device("cpu")) for _ in range(2))
    made = tiny.decode("eagle2", tiny.prompts[0], SamplerParams(20))
    assert made.trace
    steps = len(made.trace.accepted)
    assert sum(key[0] == "draft" for key in keys) == steps and sum(key[1] == 64 for key in keys) == steps
    assert not any(key[0] == "root" for key in keys)
