"""RADAR's network and policy: the authors' sizes, its two bounds, its randomness, and that it keeps the target's law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stop_nets
import torch
from places import TINY
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_model import STOP_IDS, TinyModel, fresh_tiny_model
from torch import Tensor
from torch.overrides import TorchFunctionMode

import methods
from harness.audit.probe import law
from harness.common.errors import UserError
from harness.common.plain_names import HASH
from harness.load.config import model_config
from harness.replay.stop_training import Learner, stop_law
from harness.run.arms import check_heads, make_arms
from methods.base import SamplerParams
from methods.engine import policy
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree
from methods.engine.stop_net import StopNet, pinned, stop_net

TREE: dict[str, Any] = {"top_k": 4, "depth": 4, "total": 12}


@pytest.fixture(scope="module")
def tiny() -> TinyModel:
    return fresh_tiny_model("float64")


def params(temperature: float = 0.0, n: int = 24) -> SamplerParams:
    return SamplerParams(n, STOP_IDS, temperature=temperature, key=7, keep_trees=True)


# ---- the network ----------------------------------------------------------------------------------------------------


def test_it_has_the_authors_number_of_parameters() -> None:
    learner = Learner(10)
    assert sum(p.numel() for p in learner.parameters()) == 89_730 == network(learner).n_parameters
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in learner.named_children()}
    assert parts == {"lstm": 71_680, "mlp": 17_792 + 258}


def network(learner: Learner) -> StopNet:
    return StopNet({name: p.detach().numpy() for name, p in learner.named_parameters()})


def test_it_says_what_torchs_network_says_look_by_look() -> None:
    torch.manual_seed(0)
    learner, states = Learner(10).eval(), -torch.rand(3, 7, 10).cumsum(-1)
    net, expected = network(learner), stop_law(learner(states)).detach().numpy()
    for i in range(len(states)):
        seen, goes_on, found = net.start(), 1.0, []
        for state in states[i].numpy():
            p_stop, seen = net.stop(state, seen)
            found.append(goes_on * p_stop)
            goes_on *= 1 - p_stop
        assert [*found, goes_on] == pytest.approx(expected[i].tolist(), rel=1e-4)


def test_a_policy_that_was_not_trained_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights='mine': no such policy was trained.*shipped: .*radar-audit.*train-policy"):
        pinned("mine")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(UserError, match="holds no policy"):
        stop_net(str(tmp_path / "text.safetensors"))
    learner = Learner(3, 4)
    learner.mlp[3] = torch.nn.Linear(5, 2)
    with pytest.raises(UserError, match="holds no policy.*other shapes"):
        stop_net(stop_nets.written(tmp_path / "odd", learner))


def test_weights_are_named_with_their_hash_and_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    config, given = model_config(str(TINY)), stop_nets.coin(tmp_path / "w", 4)
    (arm,) = make_arms(("radar",), "paper", {"weights": given, "top_k": "4"}, config, config.head_folder)
    name, _, sha = str(arm.options["weights"]).partition("@")
    assert name == given and len(sha) == HASH and f"weights={given}@{sha}" in arm.preset
    again = make_arms(("radar",), "paper", {"weights": f"{given}@{sha}", "top_k": "4"}, config, config.head_folder)
    assert again[0].options == arm.options
    stop_nets.coin(tmp_path / "w", 4, seed=1)
    with pytest.raises(UserError, match="the file is another one now"):
        make_arms(("radar",), "paper", {"weights": f"{given}@{sha}", "top_k": "4"}, config, config.head_folder)


def test_a_path_may_have_an_at_in_it(tmp_path: Path) -> None:
    given = stop_nets.coin(tmp_path / "me@home", 4)
    name, at, sha = pinned(given).rpartition("@")
    assert (name, at, len(sha)) == (given, "@", HASH) and pinned(f"{given}@{sha}") == f"{given}@{sha}"
    assert stop_net(f"{given}@{sha}").dim == 4
    with pytest.raises(UserError, match="the file is another one now"):
        pinned(f"{given}@{'0' * HASH}")


def test_a_group_leaves_out_a_policy_that_was_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, m = model_config(str(TINY)), methods.get("radar")
    monkeypatch.setitem(m.options, "weights", "untrained")  # type: ignore[arg-type]
    assert "radar" not in {a.name for a in make_arms((methods.POLICIES,), "paper", {}, config, config.head_folder)}
    assert "left out: method radar: weights='untrained': no such policy was trained" in capsys.readouterr().err
    with pytest.raises(UserError, match="method radar: weights='untrained'"):
        make_arms(("radar",), "paper", {}, config, config.head_folder)


def test_its_tree_has_the_papers_eight_calls_whatever_the_models_preset_says() -> None:
    config = model_config(str(TINY))
    (arm,) = make_arms(("radar",), "paper", {}, config, config.head_folder)
    assert config.presets["paper"]["depth"] == 6 and (arm.options["top_k"], arm.options["depth"], arm.options["total"]) == (
        10,
        8,
        59,
    )


def test_weights_trained_for_another_head_or_tree_are_told_of(
    tiny: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, own = tiny.loaded, tiny.loaded.drafter_id(methods.EAGLE)
    m, weights = methods.get("radar"), {"x": {"head_id": "another", "model": "their-model", "tree": "4/4/12"}}
    weights |= {"y": {"head_id": own or "", "tree": "4/8/59"}, "z": {"head_id": own or "", "tree": "4/4/59"}, "none": {}}
    arms = []
    for name, facts in weights.items():
        with safe_open(stop_nets.coin(tmp_path / name, 4), "np") as file:
            save_file({key: file.get_tensor(key) for key in file.keys()}, tmp_path / name, facts)  # noqa: SIM118
        arms.append(methods.Arm(m, "paper", m.pinned({**m.options, **TREE, "weights": str(tmp_path / name)})))
    check_heads([*arms, arms[0]], loaded)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert (
        f"x@{pinned(str(tmp_path / 'x'))[-HASH:]} were trained for head another of their-model, and this one is {own}" in told[0]
    )
    assert "y@" in told[1] and "were trained for trees of top_k/depth 4/8, and these are 4/4" in told[1]


def test_weights_for_a_narrower_tree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="look at 4 nodes, and top_k=10"):
        methods.get("radar").build(weights=stop_nets.coin(tmp_path / "w", 4))


# ---- its bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_that_never_stops_drafts_eagle_2s_trees_node_for_node(tiny: TinyModel, tmp_path: Path, temperature: float) -> None:
    always, prompt = stop_nets.constant(tmp_path / "w", 4, stops=False), tiny.prompts[0]
    own = tiny.decode("radar", prompt, params(temperature), weights=always, **TREE)
    theirs = tiny.decode("eagle2", prompt, params(temperature), **TREE)
    assert own.token_ids == theirs.token_ids and own.trace is not None and theirs.trace is not None
    assert own.trace.trees == theirs.trace.trees and len(own.trace.trees) > 3


def test_one_that_always_stops_drafts_the_flat_tree_of_the_likeliest_tokens(tiny: TinyModel, tmp_path: Path) -> None:
    never, prompt = stop_nets.constant(tmp_path / "w", 4, stops=True), tiny.prompts[0]
    own = tiny.decode("radar", prompt, params(), weights=never, **TREE)
    flat = tiny.decode("eagle2", prompt, params(), top_k=4, depth=1, total=12)
    fewer = tiny.decode("radar", prompt, params(), weights=never, **{**TREE, "total": 3})
    assert own.trace is not None and flat.trace is not None and fewer.trace is not None
    assert own.trace.trees == flat.trace.trees and all(tree.parents == [0] * 4 for tree in own.trace.trees)
    assert all(tree.parents == [0] * 3 for tree in fewer.trace.trees)


# ---- its randomness -------------------------------------------------------------------------------------------------


@pytest.fixture
def purposes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[bytes]]:
    """How often each stream was drawn from by policies."""
    found: Counter[bytes] = Counter()
    real = policy.uniform

    def counting(key: int, purpose: bytes, position: int, attempt: int = 0) -> float:
        found[purpose] += 1
        return real(key, purpose, position, attempt)

    monkeypatch.setattr(policy, "uniform", counting)
    yield found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_its_draws_are_a_stream_of_its_own_and_change_no_token(
    tiny: TinyModel, tmp_path: Path, purposes: Counter[bytes], temperature: float
) -> None:
    prompt, how = tiny.prompts[1], params(temperature)
    expected = tiny.vanilla(prompt, how).token_ids
    calls = []
    for seed in range(3):
        made = tiny.decode("radar", prompt, how, weights=stop_nets.coin(tmp_path / str(seed), 4, seed), **TREE)
        assert made.token_ids == expected and made.trace is not None
        calls.append(made.trace.tree_size)
    assert len({tuple(sizes) for sizes in calls}) > 1, "they draw and stop in different places"
    assert set(purposes) == {b"policy"} and purposes[b"policy"] > 10


def test_without_sampling_it_draws_nothing_and_takes_the_likelier(
    tiny: TinyModel, tmp_path: Path, purposes: Counter[bytes]
) -> None:
    prompt, weights = tiny.prompts[1], stop_nets.coin(tmp_path / "w", 4)
    made = [tiny.decode("radar", prompt, params(), weights=weights, sample=False, **TREE) for _ in range(2)]
    assert made[0].trace is not None and made[1].trace is not None and made[0].trace.trees == made[1].trace.trees
    assert not purposes


READS = ("tolist", "item", "__int__", "__float__", "__bool__", "__index__", "cpu", "nonzero")


class Reads(TorchFunctionMode):
    """Counts what would stop a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += getattr(func, "__name__", "") in READS
        return func(*args, **(kwargs or {}))


def test_looking_reads_nothing_from_a_device_beyond_what_a_policy_is_given(tiny: TinyModel, tmp_path: Path) -> None:
    weights, counts = stop_nets.constant(tmp_path / "w", 4, stops=False), []
    fixed = speculative(policy_tree(lambda: policy.Fixed(**TREE), 16))
    for decode in (methods.get("radar").build(weights=weights, **TREE), fixed):
        drafter = tiny.loaded.drafter_of(methods.EAGLE)
        with Reads() as reads:
            decode(tiny.prompts[0], tiny.loaded.target, drafter, SamplerParams(16, STOP_IDS))
        counts.append(reads.n)
    assert counts[0] == counts[1] > 0


# ---- the target's law -----------------------------------------------------------------------------------------------


def test_the_joint_law_of_three_tokens_is_plain_decodings() -> None:
    m = methods.get("radar")
    for small, case in law.walks(law.small_options(m), law.cases(3, "quick", m.samples_drafts), "quick"):
        for found in law.laws_of("radar", m.build(**small), case, m.samples_drafts):
            assert found.deviation <= law.TOLERANCE, (small, case.name)


class Adversary:
    """It reads all drafts and what came of earlier rounds, and stops and prunes by them as oddly as it can."""

    def __init__(self) -> None:
        self._odd = 0

    def begin(self, here: Here, last: Round | None) -> int:
        self._odd = here.position + (last.accepted if last else 0)
        return 2

    def expand(self, draft: Draft) -> Tensor:
        run = beam(draft, 2)
        goes_on = (int(draft.tokens[run[0]]) + self._odd) % 2 and draft.confidence[run[0]] < draft.confidence.max()
        return run if goes_on and draft.calls < 3 else NONE

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, 1 + (int(draft.tokens.sum()) + self._odd) % 4)


@pytest.mark.parametrize("case", law.cases(3, "quick"), ids=lambda case: case.name)
def test_an_adversarial_policy_cannot_change_the_law(case: law.Case) -> None:
    decode = speculative(policy_tree(Adversary, 8))
    assert law.decode_law("adversary", decode, case).deviation <= law.TOLERANCE


def test_a_policy_is_given_nothing_of_the_targets_round() -> None:
    assert set(Here.__slots__) == {"position", "length", "random"}
    assert set(Round.__slots__) == {"accepted", "size", "calls", "deepest", "position"}
    assert set(Draft.__slots__) == {"tokens", "parents", "confidence", "value", "levels", "expanded"}
