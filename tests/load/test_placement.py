"""Layers over several devices: who gets what, that the names are a LLaMA's, and that the engine crosses devices where it may."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from places import TINY
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, modeling_utils

from harness.common.errors import UserError
from harness.common.machine import describe
from harness.costs.random_weights import free_bytes
from harness.ledger.ledger import machine_keys
from harness.load import model as load_model
from harness.load.architecture import Architecture
from harness.load.config import model_config, paper_models
from harness.load.eagle_head import beside_last_layer
from harness.load.kinds import KINDS, eagle_parameters
from harness.load.placement import WORKSPACE, Need, device_map, free_on_gpus, let_go, need, on_gpus, split
from methods.engine import llama
from methods.engine.draft_head import EagleDrafter, EagleHead, HeadConfig
from methods.engine.layer import DecoderLayer
from methods.engine.llama import LlamaTarget
from methods.engine.target import HFTarget
from methods.engine.tree import Tree

GB = 10**9
SIZES = Architecture(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                     vocab_size=64)  # fmt: skip


def test_the_sizes_of_the_papers_targets_are_their_published_parameter_counts() -> None:
    published = {
        "Vicuna-7B": 6_738_415_616, "Vicuna-13B": 13_015_864_320, "LLaMA2-Chat-7B": 6_738_415_616,
        "LLaMA2-Chat-13B": 13_015_864_320, "LLaMA2-Chat-70B": 68_976_648_192, "LLaMA3-Instruct-8B": 8_030_261_248,
        "LLaMA3-Instruct-70B": 70_553_706_496,
    }  # fmt: skip
    assert {paper: model_config(name).architecture.n_parameters for paper, name in paper_models().items()} == published


def test_parameters_are_counted_as_the_modules_have_them() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES.model_dump()))
    assert SIZES.n_parameters == sum(p.numel() for p in model.parameters())
    head = EagleHead(HeadConfig(32, 48, 4, 2, 1e-6, 1e4, 64))
    assert eagle_parameters(SIZES) == sum(p.numel() for p in head.parameters())
    tied = SIZES.model_copy(update={"tie_word_embeddings": True})
    assert tied.n_parameters == sum(p.numel() for p in LlamaForCausalLM(LlamaConfig(**tied.model_dump())).parameters())


def test_a_70b_target_takes_the_fewest_gpus_that_hold_it() -> None:
    sizes = model_config("llama2-chat-70b").architecture
    assert sizes is not None
    what = need(sizes, "float16", 4096, drafters=KINDS["eagle"].memory_bytes(None, sizes, "float16", 4096))
    n = sizes.n_parameters + eagle_parameters(sizes)
    assert what.total == pytest.approx(2 * n + 1.4 * GB, rel=0.01)  # the caches of 80 layers
    assert split(what, [79 * GB]) is None
    two = split(what, [79 * GB] * 8)
    assert two is not None and sorted(set(two)) == [0, 1] and 38 <= two.count(0) <= 42
    four = split(what, [47 * GB] * 4)
    assert four is not None and sorted(set(four)) == [0, 1, 2, 3]
    assert split(what, [200 * GB] * 2) == [0] * 80


@given(
    layer=st.integers(1, 50), n=st.integers(1, 90), ends=st.tuples(*[st.integers(0, 60)] * 2),
    room=st.lists(st.integers(0, 2000), min_size=1, max_size=6),
)  # fmt: skip
def test_no_device_is_given_more_than_it_holds(layer: int, n: int, ends: tuple[int, int], room: list[int]) -> None:
    what = Need(first=ends[0], layer=layer, last=ends[1], n_layers=n, embedding=ends[0])
    layers = split(what, room)
    if layers is None:
        assert room[0] < what.total  # one device alone would have been taken
        return
    assert len(layers) == n and layers == sorted(layers) and layers[0] >= 0
    last = layers[-1]
    for device, there in enumerate(room):
        used = layers.count(device) * layer + (ends[0] if device == 0 else 0)
        used += ends[1] + (ends[0] if last else 0) if device == last else 0
        assert used <= there or not used


def test_what_fits_nowhere_is_said_with_both_sizes() -> None:
    sizes = model_config("llama3-instruct-70b").architecture
    with pytest.raises(UserError, match=r"14\d\.\d GB in float16 do not fit on 2 GPUs with 24.0 GB \+ 24.0 GB free"):
        on_gpus(sizes, "float16", 8192, [24 * GB] * 2)
    assert on_gpus(sizes, "float16", 8192, [200 * GB]) is None and on_gpus(None, "float16", 8192, [1]) is None
    placed = on_gpus(sizes, "float16", 8192, [79 * GB] * 4)
    assert placed is not None and {str(d) for d in placed.values()} == {"cuda:0", "cuda:1"}
    assert placed["lm_head"] == placed["model.norm"] == placed["model.layers.79"] == torch.device("cuda:1")
    assert placed["model.embed_tokens"] == torch.device("cuda:0")


def test_the_map_names_every_module_that_holds_weights() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES.model_dump()))
    names = device_map([0, 0, 1, 1])
    assert all(
        any(key.startswith(f"{name}.") for name in names) for key, _ in (*model.named_parameters(), *model.named_buffers())
    )
    assert all(model.get_submodule(name) is not None for name in names)


def put(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = nn.Parameter(torch.zeros(tensor.shape, device=device), requires_grad=False)


@pytest.fixture(params=[HFTarget, LlamaTarget])
def spread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HFTarget:
    """A target, on transformers' module and on the lean forward. Its first half is on the CPU and its second half on torch's
    `meta` device, dispatched as over GPUs.

    Meta tensors have no numbers but a device: an operation over both devices fails as it would on two GPUs.
    """
    import accelerate

    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", lambda *args, **kwargs: None)  # done by `put`
    devices = [torch.device("cpu"), torch.device("meta")]
    model = LlamaForCausalLM(LlamaConfig(**SIZES.model_dump()))
    placed = {name: devices[i] for name, i in device_map([0, 0, 1, 1]).items()}
    for name, device in placed.items():
        put(model.get_submodule(name), device)
    names = {name: device.type for name, device in placed.items()}
    accelerate.dispatch_model(model, names, main_device="cpu", skip_keys=model._skip_keys_device_placement)
    monkeypatch.setattr(llama, "is_lean", lambda model, dtype=None: True)
    made: HFTarget = request.param(model)
    return made


def test_a_target_over_two_devices_prefills_steps_verifies_and_commits(spread: HFTarget) -> None:
    assert [d.type for d in spread.devices] == ["cpu", "meta"] and [d.type for d in spread.cache.devices] == ["cpu"] * 2 + [
        "meta"
    ] * 2
    features, logits = spread.prefill([1, 2, 3, 4], 20)
    assert features.device.type == logits.device.type == "meta" and features.shape == (4, 32)
    features, logits = spread.verify(Tree([5, 6, 7], [-1, 0, 0]))
    assert features.shape == (3, 32) and logits.shape == (3, 64)
    spread.commit([0, 2])
    assert spread.step(9).shape == (64,) and spread.length == 7
    with spread.shallow([0, 1]):  # which all lie on the first device; what follows the layers lies on the last
        features, logits = spread.prefill([1, 2, 3, 4], 20)
        assert features.shape == (4, 32) and logits.shape == (64,)


def drafts(drafter: EagleDrafter, features: torch.Tensor) -> torch.Tensor:
    drafter.start(40)
    drafter.observe([1, 2, 3, 4], features)
    device = drafter.root_logits().device
    tokens, parents = torch.tensor([7, 8], device=device), torch.full((2,), -1, device=device)
    return drafter.expand(tokens, parents, torch.eye(2, dtype=torch.bool, device=device))


def test_the_head_stands_beside_the_last_layer_with_its_own_copy_of_the_embedding(spread: HFTarget) -> None:
    features, _ = spread.prefill([1, 2, 3, 4], 20)
    head = EagleHead(HeadConfig(32, 48, 4, 2, 1e-6, 1e4, 64))
    drafter = beside_last_layer(spread, head, None)
    assert drafter.device.type == drafter.embedding.device.type == "meta" and spread.embedding.device.type == "cpu"
    assert drafts(drafter, features).shape == (2, 64)
    with pytest.raises(RuntimeError, match="device"):  # this is noticed here, too
        drafts(EagleDrafter(head, spread.embedding, spread.lm_head), features)


def test_what_is_let_go_of_is_freed_on_gpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ring:
        def __init__(self) -> None:
            self.self = self

    kept, done = weakref.ref(Ring()), list[str | bool]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: done.append("workspaces"), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append(kept() is None))
    let_go()
    # what only a cycle held is gone before the GPU's memory is asked for, and what may lie in a model's block of it
    assert done == ["workspaces", True]


def test_what_torch_holds_and_nothing_lies_in_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of memory goes back to the GPU as a whole only: what little lies in it keeps all of it."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((3 + i) * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda i: 64 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda i: 2 * GB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert free_on_gpus() == [65 * GB - WORKSPACE, 66 * GB - WORKSPACE]
    assert free_bytes(torch.device("cuda", 1)) == 66 * GB - WORKSPACE


def test_each_weight_gets_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would take one block for all. Then what is let go of, as projections that are fused, stays taken."""
    taken: list[str] = []
    monkeypatch.setattr(modeling_utils, load_model.WARM_UP, lambda *args: taken.append("a block"))
    folder = TINY.parent / "target"
    here = {"": torch.device("cpu")}
    load_model._target_model(model_config(str(TINY)), folder, "float32", here)
    assert not taken
    AutoModelForCausalLM.from_pretrained(folder, device_map=here)
    assert taken  # by this name, and with places as we give them


def test_on_a_gpu_the_projections_of_one_layer_at_a_time_are_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fused(*args: Any, **kwargs: Any) -> DecoderLayer:
        done.append("fused")
        return DecoderLayer(*args, **kwargs)

    monkeypatch.setattr(llama, "DecoderLayer", fused)
    monkeypatch.setattr(llama, "is_lean", lambda model, dtype=None: True)
    monkeypatch.setattr(llama, "share", lambda attention, weight: done.append("shared"))
    with torch.device("meta"):
        LlamaTarget(LlamaForCausalLM(LlamaConfig(**SIZES.model_dump())))
    assert done == ["fused", "shared"] * SIZES.num_hidden_layers


def test_clock_and_memory_are_read_over_every_gpu_and_their_number_names_the_machine(
    spread: HFTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    peaks = {0: 70, 1: 90}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[device.index])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update({device.index: 10 + device.index}))
    spread.device, spread.devices = torch.device("cuda", 0), (torch.device("cuda", 0), torch.device("cuda", 1))
    spread.synchronise()
    assert waited == list(spread.devices) and spread.peak_bytes() == 160
    spread.reset_peak()
    assert spread.peak_bytes() == 21
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Voodoo")
    told = {
        "dtype": "float16",
        "threads": 1,
        "target_sha": "t",
        "target_parts": {},
        "engine_sha": "e",
        "head_sha": None,
        "seed": 0,
        "template": "llama-2",
        "system": "none",
        "is_row_invariant": False,
        "engine_facts": {},
    }
    gpus = [machine_keys(describe(**told, n_devices=n))["gpu"] for n in (1, 2)]
    assert gpus == ["Voodoo", "2 x Voodoo"]


def test_a_map_of_placement_is_one_that_transformers_loads_by(tmp_path) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES.model_dump())).save_pretrained(tmp_path)
    placed = dict.fromkeys(device_map([0, 0, 1, 1]), torch.device("cpu"))
    assert not any(p.is_meta for p in LlamaForCausalLM.from_pretrained(tmp_path, device_map=placed).parameters())
