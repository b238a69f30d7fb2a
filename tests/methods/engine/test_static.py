"""Steps of fixed shapes, on a CPU: the same trees, outputs and traces as the dynamic ones, for every method."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import harness, isolate
from places import TINY
from policies import POLICIES
from pretended_graphs import pretend
from random_llamas import module_of
from tiny_model import TinyModel, fresh_tiny_model

import methods
from harness.costs import session
from harness.ledger.ledger import read, read_env
from harness.load import model as load_model
from harness.run.runner import Runner
from harness.watch import run as run_watch
from harness.watch.check import BadGeneration
from methods.base import SamplerParams
from methods.engine.cache import TreeCache
from methods.engine.engines import begin, n_recordings, prepare, refused_late
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
@pytest.mark.parametrize("name", [*NAMES, *POLICIES])
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


def test_after_preparing_no_buffer_grows_for_a_large_tree(engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decodes asks for room for its tree behind the last token."""
    tiny = engines["static"]
    target, drafter = tiny.loaded.target, tiny.loaded.drafter_of("eagle")
    for part in (target, drafter):  # as they are when a model was just loaded
        monkeypatch.setattr(part, "_most_room", 0)
    monkeypatch.setattr(target, "cache", TreeCache(target.cache.devices, 2, target.cache.head_dim, target.dtype))
    monkeypatch.setattr(target, "_n_positions", 0)
    monkeypatch.setattr(drafter, "_capacity", 0)
    pretend(monkeypatch, target, drafter)
    prompt, tokens, n = tiny.prompts[0], 600, 40
    begin(target, [drafter])
    for total in (7, 300):
        tiny.decode("eagle2", prompt, SamplerParams(4), total=total, top_k=20, depth=12)
    text = (prompt * 9)[: tokens - n]
    prepare(target, [drafter], tokens)
    made, capacity = n_recordings(target), (target.cache.capacity, drafter._capacity)
    tiny.decode("eagle2", text, SamplerParams(n), total=300, top_k=20, depth=12)
    assert (target.cache.capacity, drafter._capacity) == capacity and n_recordings(target) == made


def test_what_was_asked_for_in_an_earlier_race_is_not_recorded(
    engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = engines["static"]
    target, drafter = tiny.loaded.target, tiny.loaded.drafter_of("eagle")
    pretend(monkeypatch, target, drafter)
    for name in ("eagle2", "eagle2-fr", "eagle1"):
        tiny.decode(name, tiny.prompts[0], SamplerParams(4), **({"frequent": 200} if name == "eagle2-fr" else {}))
    for part in (target, drafter):
        part.replayer.forget()
    begin(target, [drafter])
    tiny.decode("eagle2", tiny.prompts[0], SamplerParams(4), total=20)
    prepare(target, [drafter], 300)
    assert {key[1] for key in target.replayer._known if key[0] != "commit"} == {1, 8, 16, 32}
    drafts = {key[1:3] for key in drafter.replayer._known if key[0] in ("draft", "root")}
    assert len(drafts) == 1 and {total for (_, _, total, *_), _ in drafts} == {20}


def test_what_costs_were_measured_with_is_not_recorded_for_a_race(
    engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = engines["static"]
    monkeypatch.setattr("harness.costs.session.ROWS", (1, 100))
    monkeypatch.setattr("harness.costs.measure.PROBE_TOKENS", 8)
    session.measured_of(tiny.loaded, 1, session.Wanted(contexts=(64,), rounds=1), ["eagle"])
    target, drafter = tiny.loaded.target, tiny.loaded.drafter_of("eagle")
    assert target._most_rows == 1 and not drafter._drafts and not drafter._roots


def test_what_the_last_step_observed_is_no_hindrance_to_preparing(
    engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = engines["static"]
    target, drafter = tiny.loaded.target, tiny.loaded.drafter_of("eagle")
    pretend(monkeypatch, target, drafter)
    drafter.start(400)
    drafter.observe(list(range(3, 15)), torch.zeros(12, drafter.head.config.hidden_size))  # the last of 16 rows is the 12th
    drafter.prepare(300)
    assert {key[1] for key in drafter.replayer._known if key[0] == "observe"} == {8, 16}


def test_a_recording_knows_of_variables_what_they_were(engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pretended graphs of these tests would not show else."""
    target = engines["static"].loaded.target
    pretend(monkeypatch, target)
    target.prefill([1, 2, 3], 9)
    target.step(5)

    def read_length() -> torch.Tensor:
        return torch.tensor([target.cache.length])

    assert int(target.replayer("length", read_length)) == 4
    target.step(5)
    assert int(target.replayer("length", read_length)) == 4 and target.cache.length == 5


TWO = (torch.device("cpu"), torch.device("cpu", 1))


@pytest.fixture
def over_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a static target of two layers take them to lie on two devices: its buffers, inputs and recordings are two."""
    inner = LlamaTarget.__init__

    def split(self: Any, model: Any, packed: bool = True) -> None:
        inner(self, model, packed)
        if isinstance(self, StaticTarget):
            self.devices, self._placed = TWO, list(enumerate(TWO))
            self.cache = TreeCache(list(TWO), self._kv_heads, self.cache.head_dim, self.dtype)

    monkeypatch.setattr(LlamaTarget, "__init__", split)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_layers_on_two_devices_are_a_recording_on_each(
    temperature: float, over_two: None, engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setenv("HARNESS_ENGINE", "static")
    tiny = fresh_tiny_model("float32")
    target, drafter = tiny.loaded.target, tiny.loaded.drafter_of("eagle")
    pretend(monkeypatch, target, drafter)
    first, second = target.replayer, target._others[TWO[1]]
    begin(target, [drafter])
    for prompt in tiny.prompts[:2]:
        params = SamplerParams(40, temperature=temperature, keep_trees=True)
        found, wanted = (engines_of.decode("eagle2", prompt, params) for engines_of in (tiny, engines["torch"]))
        assert found.token_ids == wanted.token_ids and found.trace and wanted.trace
        assert found.trace.accepted == wanted.trace.accepted
    prepare(target, [drafter], 600)
    made = n_recordings(target)
    tiny.decode("eagle2", (tiny.prompts[0] * 20)[:500], SamplerParams(60, temperature=temperature))
    assert n_recordings(target) == made
    assert len(first._known) == len(second._known) > 10
    assert {key[0] for key in first._known} == {(0,), "commit"} and {key[0] for key in second._known} == {(1,), "commit"}


class FakeCuda:
    """As much of `torch.cuda` as a recording takes. What it gives out is counted, and it knows its current stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.n_streams, self.cleared, self.captured, self.fails = "main", 0, list[bool](), False, False
        for name in ("Stream", "CUDAGraph", "graph", "stream", "current_stream", "device", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.cleared.append(self.captured), raising=False)

    class CUDAGraph:
        def replay(self) -> None:
            pass

    class Side:
        def wait_stream(self, other: Any) -> None:
            pass

    def Stream(self) -> Any:
        self.n_streams += 1
        return self.Side()

    def current_stream(self, device: Any = None) -> Any:
        return self.current if isinstance(self.current, self.Side) else self.Main(self)

    class Main(Side):
        def __init__(self, cuda: Any) -> None:
            self.cuda = cuda

    def graph_pool_handle(self) -> int:
        return 1

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, "main" if isinstance(stream, self.Main) else stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """As torch's: where the recording cannot be ended, its stream stays."""
        before, self.current, self.captured = self.current, stream, True
        yield
        self.captured = False
        if self.fails:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.current = before


def test_all_recordings_of_a_device_are_made_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    replayer = Replayer(torch.device("cuda", 0))
    for key in range(5):
        replayer(key, lambda: None)
    replayer.forget()
    replayer(0, lambda: None)
    assert cuda.n_streams == 1 and n_of(replayer) == 6
    # what products work in is dropped before each recording and after it, so that it is the recording's own
    assert cuda.cleared == [False] * 12


def n_of(replayer: Replayer) -> int:
    return replayer.recording.n_tried


def test_a_recording_that_cannot_be_ended_leaves_the_stream_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda = FakeCuda(monkeypatch)
    cuda.fails = True
    replayer = Replayer(torch.device("cuda", 0))
    assert replayer("key", lambda: 7) == 7
    assert cuda.current == "main" and not replayer.records
    assert "no CUDA graphs (CUDA error: operation failed" in capsys.readouterr().err


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
    assert not target.replayer._known and not drafter.replayer._known  # what others had recorded gives its memory back
    said = capsys.readouterr().err
    assert said.count("no CUDA graphs (CUDA error: operation not permitted when stream is capturing)") == 1
    assert len(said.splitlines()) == 1


def refusing(monkeypatch: pytest.MonkeyPatch, on: list[bool]) -> None:
    """Let recordings be refused from when `on` holds something."""
    record = Replayer._recorded

    def refuse(self: Replayer, compute: Any) -> Any:
        if on:
            raise RuntimeError(REFUSED)
        return record(self, compute)

    monkeypatch.setattr(Replayer, "_recorded", refuse)


def test_a_generation_in_which_a_recording_was_refused_does_not_count(
    engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its warm-ups ran on the clock. Before anything was measured the rest is launched call by call; later it is an error."""
    tiny = engines["static"]
    target, names, builds = tiny.loaded.target, run_watch.Names("t", "d"), list[str]()
    refused: list[bool] = []
    pretend(monkeypatch, target)
    refusing(monkeypatch, refused)

    def build() -> Any:
        builds.append(target.mode)
        return methods.get("vanilla").build()

    def settled() -> Any:
        return run_watch.settled(build, tiny.prompts[0], target, None, SamplerParams(9), names)

    refused.append(True)
    assert settled().n_recordings == 0 and builds == ["graphs", "eager"]
    assert target.engine_facts["mode"] == "eager" and refused_late(target) is None

    target.replayer.recording.on = True
    refused.clear()
    begin(target, [])
    settled()
    prepare(target, [], 200)
    target.replayer.forget()
    refused.append(True)
    with pytest.raises(run_watch.ModeChanged, match="refused a CUDA graph after others had been measured with .CUDA error"):
        settled()
    with pytest.raises(run_watch.ModeChanged):  # nor is anything that comes after it set beside what came before
        settled()
    begin(target, [])
    assert settled().n_recordings == 0 and refused_late(target) is None


@pytest.mark.parametrize("when", ["warming up", "measuring"])
def test_records_say_whether_steps_were_replayed(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setenv("HARNESS_ENGINE", "static")
    load, begin_run, refused, out = load_model.load, Runner.run, list[bool](), tmp_path / "r"

    def loaded(*args: Any, **kwargs: Any) -> Any:
        found = load(*args, **kwargs)
        pretend(monkeypatch, found.target, found.drafter_of("eagle"))
        refusing(monkeypatch, refused)
        refused.extend([True] * (when == "warming up"))
        return found

    def run(self: Runner, *args: Any) -> int:
        self.loaded.target.replayer.forget()
        refused.append(True)
        return begin_run(self, *args)

    monkeypatch.setattr(load_model, "load", loaded)
    if when == "measuring":
        monkeypatch.setattr(Runner, "run", run)
    done = harness(f"run --model {TINY} --method vanilla --task gsm8k --source bundled --limit 1 --max-new-tokens 9 --threads 1 "
                   f"--dtype float32 --out {out}")  # fmt: skip
    found = read(out) if (out / "records.jsonl").is_file() else []
    if when == "measuring":
        assert done.code != 0 and "refused a CUDA graph after others had been measured with" in done.err.splitlines()[-1]
        assert all(r["is_warmup"] for r in found)
    else:
        assert done.code == 0, done.err
        assert len(found) == 2 and {read_env(out, r["env"])["mode"] for r in found} == {"eager"}
        assert all(r["machine"].endswith(", eager") for r in found)


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
