"""Steps of fixed shapes, on a CPU: the same trees, outputs and traces as the dynamic ones, for every method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import isolate
from random_llamas import module_of
from tiny_model import TinyModel, fresh_tiny_model

import methods
from methods.base import SamplerParams
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


def test_a_later_prompt_and_fewer_layers_are_read_anew() -> None:
    target, plain = target_with_records(), LlamaTarget(module_of("tiny", torch.float32))
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


class PretendedGraphs(Replayer):
    """Replays what was recorded first, as a GPU would: the same function object, whatever is given the next time. It finds the
    buffers where they were when it was recorded."""

    def __init__(self, part: Any):
        super().__init__(part.device)
        self.part = part

    def addresses(self) -> list[int]:
        """Of what a recording reads that is not made anew for each step."""
        part = self.part
        if isinstance(part, StaticTarget):
            kept = [*part.cache.of_layer(0), *part._tables[part.device]]
        else:
            kept = [part._keys, part._values, part._cos, part._sin, *([] if part._names is None else [part._names])]
        return [x.data_ptr() for x in kept]

    def __call__(self, key: Any, compute: Any) -> Any:
        compute, there = self._known.setdefault(key, (compute, self.addresses()))
        assert there == self.addresses()
        return compute()


def target_with_records() -> StaticTarget:
    target = StaticTarget(copy.deepcopy(module_of("tiny", torch.float32)))
    target.replayer = PretendedGraphs(target)
    return target


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["vanilla", "eagle2", "eagle2-fr", "eagle2-no-rerank", "eagle1", "pld"])
def test_what_was_recorded_once_serves_every_step(
    name: str, temperature: float, engines: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a step is left in the function that was recorded in another one: all of it comes through buffers."""
    tiny = engines["static"]
    for part in (tiny.loaded.target, tiny.loaded.drafter_of("eagle")):
        monkeypatch.setattr(part, "replayer", PretendedGraphs(part))
    options: dict[str, Any] = {"frequent": 200} if name == "eagle2-fr" else {}
    for i, prompt in enumerate(tiny.prompts[:3]):
        params = SamplerParams(40, temperature=temperature, key=i)
        assert (
            tiny.decode(name, prompt, params, **options).token_ids
            == engines["torch"].decode(name, prompt, params, **options).token_ids
        )


def test_what_cannot_be_recorded_runs_call_by_call_and_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    replayer = Replayer(torch.device("cpu"))
    replayer.records = True

    def refuse(compute: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    replayer._recorded = refuse  # type: ignore[method-assign]
    assert [replayer("a", lambda: 3), replayer("b", lambda: 4)] == [3, 4]
    said = capsys.readouterr().err
    assert said.count("no CUDA graphs (CUDA error: operation not permitted when stream is capturing)") == 1


def test_buckets() -> None:
    assert [bucket(n, ROWS) for n in (1, 2, 9, 60, 128, 129)] == [1, 8, 16, 64, 128, None]


def test_layers_on_several_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = module_of("tiny", torch.float32)
    monkeypatch.setattr(LlamaTarget, "__init__", lambda self, model, packed: setattr(self, "devices", (1, 2)))
    with pytest.raises(ValueError, match="layers lie on 2 devices"):
        StaticTarget(model)


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
