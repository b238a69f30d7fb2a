"""Reading an EAGLE-3 head: its config.json says what drafts, its vocabulary is checked, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drafter_folders import CONFIG, edited
from places import TINY
from safetensors.torch import load_file, save_file
from torch import Tensor

import methods
from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.load import preflight
from harness.load.eagle3_head import head_config
from harness.load.kinds import drafter_kind
from harness.load.model import Loaded, load
from harness.run.arms import check_given, make_arms

HEAD = TINY.parent / "eagle3"


def loaded_with(folder: Path, dtype: str = "float64", **how: Any) -> Loaded:
    return load(CONFIG.model_copy(update={"drafters": {"eagle3": str(folder)}}), dtype, drafters=["eagle3"], **how)


def with_state(tmp_path: Path, change: Callable[[dict[str, Tensor]], None], **changes: Any) -> Path:
    """The tiny model's head with other weights, which its config.json names by their hash."""
    folder = tmp_path / "changed"
    shutil.copytree(HEAD, folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text()) | {"weights_sha256": sha256_file(folder / "model.safetensors")}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))
    return folder


def config_of(tmp_path: Path, **changes: Any) -> Any:
    return head_config(edited(tmp_path, "eagle3", **changes), "tiny", 2)[0]


def nested(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((HEAD / "config.json").read_text())["eagle_config"] | changes
    return {"eagle_config": {k: v for k, v in values.items() if v is not None}}


def test_weights_are_read_as_they_are() -> None:
    loaded = loaded_with(HEAD)
    drafter, stored = loaded.drafter_of("eagle3"), load_file(HEAD / "model.safetensors")
    state = drafter.head.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[k].to(stored[k].dtype), stored[k]) for k in stored)
    assert drafter.aux_layers == (0, 1, 2) and len(drafter.named(torch.arange(256))) == 256
    assert drafter_kind(HEAD) == "eagle3" and loaded.sha_of("eagle3") == sha256_file(HEAD / "model.safetensors")
    assert loaded.drafter is None  # which is of the other kind


@pytest.mark.parametrize("flag", ["norm_output", "norm_before_residual", "fc_norm", "norm_before_fc"])
def test_a_choice_may_stand_inside_eagle_config_or_beside_it_and_is_false_where_it_does_not(flag: str, tmp_path: Path) -> None:
    rest = {k: v for k, v in nested(norm_before_fc=None)["eagle_config"].items() if k != flag}
    for i, (beside, inside) in enumerate([(True, None), (None, True), (True, True), (None, None), (False, False)]):
        inner = rest | ({} if inside is None else {flag: inside})
        config = config_of(tmp_path / str(i), **{flag: beside, "eagle_config": inner})
        assert getattr(config, flag) is bool(beside or inside)
    with pytest.raises(UserError, match=f"two values of {flag}, one of them in eagle_config"):
        config_of(tmp_path / "clash", **{flag: True, "eagle_config": rest | {flag: False}})
    with pytest.raises(UserError, match=f"{flag} is 'yes'; it must be true or false"):
        config_of(tmp_path / "text", **{flag: "yes", "eagle_config": rest})


def test_choices_that_are_made_here_may_be_named(tmp_path: Path) -> None:
    """As NVIDIA's heads and Qwen's configs do."""
    made = nested(use_input_layernorm_in_first_layer=True, use_last_layernorm=True, use_mtp_layernorm=False)
    window = {"max_window_layers": 36, "use_sliding_window": False, "sliding_window": None}
    assert config_of(tmp_path / "a", **made, **window, use_aux_norm=False) == config_of(tmp_path / "b")
    assert config_of(tmp_path / "c", use_aux_norm=True, fc_norm=None).fc_norm


def test_choices_reach_the_drafter_with_their_weights(tmp_path: Path) -> None:
    def norms(state: dict[str, Tensor]) -> None:
        state.update({f"fc_norm.{i}.weight": torch.full((64,), 1.0 + i) for i in range(3)})

    folder = with_state(tmp_path, norms, fc_norm=True, norm_output=True, norm_before_residual=True)
    head = loaded_with(folder).drafter_of("eagle3").head
    assert head.config.fc_norm and head.config.norm_output and head.config.norm_before_residual
    assert [float(norm.weight[0]) for norm in head.fc_norm] == [1.0, 2.0, 3.0]


def test_a_head_without_a_draft_vocabulary_is_over_all_tokens(tmp_path: Path) -> None:
    def whole(state: dict[str, Tensor]) -> None:
        state["lm_head.weight"] = torch.zeros(384, 64)
        del state["d2t"], state["t2d"]

    folder = with_state(tmp_path, whole, draft_vocab_size=None)
    assert torch.equal(loaded_with(folder).drafter_of("eagle3").named(torch.arange(384)), torch.arange(384))


def reading(*states: int, **more: Any) -> dict[str, Any]:
    """Changes by which a head reads these hidden states."""
    return {"aux_hidden_states": list(states), **nested(eagle_aux_hidden_state_layer_ids=None), **more}


def test_the_usual_hidden_states_are_read_where_none_are_named(tmp_path: Path) -> None:
    folder = edited(tmp_path, "eagle3", **reading() | {"aux_hidden_states": None})
    assert head_config(folder, "tiny", 30)[0].aux_layers == (2, 15, 27)
    with pytest.raises(UserError, match=r"of 2 layers has no usual three \(2, 1, -1\): name them in aux_hidden_states"):
        head_config(folder, "tiny", 2)


def test_a_list_in_eagle_config_has_one_meaning_and_one_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    """It counts as SGLang does, whatever else is there; what an earlier `harness train` wrote is not taken for that."""
    deep, inner = ("tiny", 30), nested(eagle_aux_hidden_state_layer_ids=[2, 15, 27])
    alone = {"aux_hidden_states": None, **inner}
    assert head_config(edited(tmp_path / "a", "eagle3", **alone, weights_sha256=None), *deep)[0].aux_layers == (3, 16, 28)
    with pytest.raises(UserError, match=r'write "aux_hidden_states": \[2, 15, 27\] beside eagle_config, and \[1, 14, 26\] in it'):
        head_config(edited(tmp_path / "b", "eagle3", **alone), *deep)
    mended = {"aux_hidden_states": [2, 15, 27], **nested(eagle_aux_hidden_state_layer_ids=[1, 14, 26])}
    for i, gone in enumerate(({}, {"weights_sha256": None})):
        assert head_config(edited(tmp_path / f"c{i}", "eagle3", **mended, **gone), *deep)[0].aux_layers == (2, 15, 27)
    with pytest.raises(UserError, match=r"aux_hidden_states is \[2, 15, 27\], and .* in eagle_config is \[2, 15, 27\]"):
        head_config(edited(tmp_path / "d", "eagle3", aux_hidden_states=[2, 15, 27], **inner), *deep)


def test_of_a_target_of_which_some_layers_are_run_the_last_state_stands_in_for_what_is_not_there() -> None:
    loaded = loaded_with(HEAD, layers=1)
    assert len(loaded.target.body.layers) == 1 and loaded.drafter_of("eagle3").aux_layers == (0, 1, 1)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another target": ({"target_sha256": "0" * 64}, "trained for a target with sha256 0000000000000000..; tiny has"),
    "altered weights": ({"weights_sha256": "0" * 64}, "truncated or altered"),
    "another width": ({"hidden_size": 96, "target_hidden_size": None}, "is for a target with hidden size 96 and 384 tokens"),
    "another vocabulary": ({"vocab_size": 500}, "is for a target with hidden size 64 and 500 tokens; tiny has 64 and 384"),
    "a target of another width": ({"target_hidden_size": 96}, "target_hidden_size is 96 and hidden_size 64"),
    "more drafted than there are": ({"draft_vocab_size": 400}, "draft_vocab_size is 400, and vocab_size 384"),
    "another draft vocabulary": ({"draft_vocab_size": 200}, "has shape [256], expected [200]"),
    "two norms before fc": ({"fc_norm": True, **nested(norm_before_fc=True)}, "fc_norm and norm_before_fc are both true"),
    "a norm without its weight": ({"fc_norm": True}, "missing key 'fc_norm.0.weight' (3 in all)"),
    "two layers": ({"num_hidden_layers": 2}, "num_hidden_layers is 2; a draft head has 1"),
    "no hidden states": (nested(use_aux_hidden_state=False), "use_aux_hidden_state is False; a head of EAGLE-3 here reads"),
    "states that are not there": (reading(0, 1, 3), "is [0, 1, 3]; it must be hidden states of "
                                  "the target, ascending, from 0 to 2, the layers of the target"),
    "states in another order": (reading(1, 0, 2), "is [1, 0, 2]; it must be hidden states"),
    "a state twice": (reading(0, 1, 1), "is [0, 1, 1]; it must be hidden states"),
    "two states": (reading(0, 1, num_aux_hidden_states=2), "names 2 hidden states; a "
                   "head of EAGLE-3 reads 3"),
    "a number of states": ({"num_aux_hidden_states": 2}, "num_aux_hidden_states is 2, and aux_hidden_states names 3"),
    "no object": ({"eagle_config": [1]}, "eagle_config is [1]; it must be an object"),
    "no draft vocabulary": ({"draft_vocab_size": 0}, "draft_vocab_size is 0; it must be a whole number of at least 1"),
    "a truth for a size": ({"target_hidden_size": False}, "target_hidden_size is False; it must be a whole number"),
    "a truth for a number": ({"num_hidden_layers": True}, "num_hidden_layers is True; a draft head has 1"),
    "a number of states that is none": ({"num_aux_hidden_states": 3.0}, "num_aux_hidden_states is 3.0, and aux_hidden_states"),
    "an older word that is none": ({"use_aux_norm": "yes"}, "use_aux_norm is 'yes'; it must be true or false"),
    "an older word that contradicts": ({"use_aux_norm": True, "fc_norm": False}, "use_aux_norm is True, and fc_norm False: two"),
    "no last norm": (nested(use_last_layernorm=False), "use_last_layernorm is False; a head of EAGLE-3 here norms what its LM"),
    "no first norm": (nested(use_input_layernorm_in_first_layer=False), "here norms the embedding that its layer reads"),
    "a window": ({"max_window_layers": 36, "use_sliding_window": True}, "does not honour max_window_layers = 36, use_sliding"),
    "another key": ({"attention_bias": True}, "does not honour attention_bias = True"),
    "another key inside": (nested(parallel_drafting=True), "does not honour parallel_drafting = True"),
    "another layer": ({"architectures": ["Eagle3Qwen3ForCausalLM"]}, "architectures = Eagle3Qwen3ForCausalLM: a draft head here "
                      "has the layer of a LLaMA"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "the heads a multiple of the key-value heads"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_in_one_line(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        loaded_with(edited(tmp_path, "eagle3", **changes), "float32")
    assert said in str(error.value) and "\n" not in str(error.value)


def _moved(state: dict[str, Tensor]) -> None:
    state["d2t"] += 200


def _swapped(state: dict[str, Tensor]) -> None:
    tokens = state["d2t"] + torch.arange(256)
    state["d2t"] = tokens[torch.tensor([1, 0, *range(2, 256)])] - torch.arange(256)


def _unmarked(state: dict[str, Tensor]) -> None:
    marked = state["t2d"].nonzero()[:, 0]
    state["t2d"][marked[3]], state["t2d"][(~state["t2d"]).nonzero()[0, 0]] = False, True


def _fractions(state: dict[str, Tensor]) -> None:
    state["d2t"] = state["d2t"].float()


def _biased(state: dict[str, Tensor]) -> None:
    state["fc.bias"] = torch.zeros(64)


def _without(state: dict[str, Tensor]) -> None:
    del state["t2d"]


def _infinite(state: dict[str, Tensor]) -> None:
    state["norm.weight"][3] = torch.inf


@pytest.mark.parametrize(("change", "said"), [
    (_moved, "d2t gives no ascending token ids under 384"), (_swapped, "d2t gives no ascending token ids"),
    (_unmarked, "t2d marks other tokens than d2t gives"), (_fractions, "d2t holds whole numbers and t2d truth values"),
    (_biased, "unexpected key 'fc.bias'"), (_without, "missing key 't2d'"), (_infinite, "norm.weight holds NaN or infinity"),
])  # fmt: skip
def test_weights_that_are_no_head_are_refused_in_one_line(
    change: Callable[[dict[str, Tensor]], None], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        loaded_with(with_state(tmp_path, change), "float32")
    assert said in str(error.value) and "\n" not in str(error.value)


def embedding_of_target() -> Tensor:
    return load_file(TINY.parent / "target" / "model.safetensors")["model.embed_tokens.weight"]


def another(embedding: Tensor) -> Tensor:
    return embedding.index_copy(0, torch.tensor([300]), embedding[300:301] * 1.02)


@pytest.mark.parametrize(("kind", "stored", "dtype"), [
    ("eagle", "float16", "float32"), ("hydra", "bfloat16", "float32"), ("medusa", "float32", "bfloat16"),
    ("lm", "float16", "bfloat16"), ("eagle3", "float16", "bfloat16"), ("eagle3", "bfloat16", "float64"),
    ("eagle3", "float32", "bfloat16"), ("eagle3", "float32", "float32"),
])  # fmt: skip
def test_an_embedding_in_the_file_must_be_the_targets(kind: str, stored: str, dtype: str, tmp_path: Path) -> None:
    own = {"eagle": "head", "lm": "sps"}.get(kind, kind)

    def given(name: str, embedding: Tensor) -> Path:
        shutil.copytree(TINY.parent / own, folder := tmp_path / name)
        state = load_file(folder / "model.safetensors") | {"embed_tokens.weight": embedding.to(getattr(torch, stored))}
        if stored == "float16":
            torch.save(state, folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        else:
            save_file(state, folder / "model.safetensors")
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != "weights_sha256"}))
        return folder

    def loads(folder: Path) -> Loaded:
        return load(CONFIG, dtype, head=folder, drafters=[kind])

    embedding = embedding_of_target()
    assert loads(given("same", embedding)).drafter_of(kind) is not None
    with pytest.raises(UserError, match=r"embed_tokens.weight is not the target's \(token 300 differs by up to "):
        loads(given("another", another(embedding)))
    with pytest.raises(UserError, match=r"embed_tokens.weight has shape \[7, 5\] .* a copy of the target's has \[384, 64\]"):
        loads(given("of another shape", torch.zeros(7, 5)))


def test_a_head_is_known_by_its_weights_where_its_config_names_no_architecture(tmp_path: Path) -> None:
    folder = edited(tmp_path, "eagle3", architectures=None)
    assert drafter_kind(folder) == "eagle3" and loaded_with(folder, "float32").drafter_of("eagle3") is not None


def test_a_policy_drafts_with_the_kind_of_head_that_is_given_and_other_methods_with_their_own() -> None:
    names = ("opt-tree", "eagle2", "eagle3", "pld")

    def drafters(head: Path | None) -> dict[str, str | None]:
        return {arm.name: arm.method.drafter for arm in make_arms(names, "paper", {}, CONFIG, head)}

    assert drafters(CONFIG.head_folder) == {"opt-tree": "eagle", "eagle2": "eagle", "eagle3": "eagle3", "pld": None}
    assert drafters(HEAD) == {"opt-tree": "eagle3", "eagle2": "eagle", "eagle3": "eagle3", "pld": None}
    (own,) = make_arms(("eagle3",), "paper", {}, CONFIG, None)
    assert own.options["total"] == CONFIG.presets["paper"]["total"]  # a model's own presets count for either head
    with pytest.raises(UserError, match="holds a draft head of EAGLE-3, and none of eagle2 drafts with one"):
        check_given(HEAD, [methods.get("eagle2")])


def test_its_bytes_count_in_a_dry_run() -> None:
    lines = "\n".join(preflight.report(CONFIG, kinds=["eagle3"], head=None, dtype="float32"))
    assert "missing: nothing" in lines


@pytest.mark.parametrize(("changes", "said"), [
    ({"hidden_size": 96, "target_hidden_size": None}, "is for a target with hidden size 96 and 384 tokens; tiny"),
    (reading(0, 1, 3), "[0, 1, 3]; it must be hidden states of the target"),
])  # fmt: skip
def test_a_dry_run_tells_that_a_head_does_not_fit(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"drafters": {"eagle3": str(edited(tmp_path, "eagle3", **changes))}})
    lines = [*preflight.report(config, kinds=["eagle3"], head=None, dtype="float32")]
    assert sum(line.startswith("missing: a draft head of EAGLE-3 that fits: ") and said in line for line in lines) == 1
