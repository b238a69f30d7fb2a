"""Drafters besides the EAGLE head (Medusa, Hydra, draft LMs): against their definitions, how they are read, and their trees."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from command_line import refused, run, tiny_copy
from drafter_folders import CONFIG, edited, hub_lm, published, with_drafter
from drafting import close, expand_in_levels
from places import TINY
from safetensors.torch import load_file
from tiny_model import STOP_IDS, TinyModel, fresh_tiny_model
from torch import Tensor

import methods
from harness.audit.probe import law
from harness.audit.probe.stand_ins import texts_of
from harness.cli import cli
from harness.common.errors import UserError
from harness.ledger.ledger import read
from harness.load.config import model_config, read_model
from harness.load.draft_lm import differing_tokens
from harness.load.drafters import read_state
from harness.load.kinds import drafter_kind
from harness.load.model import Loaded, load
from harness.load.weights import drafter_folders
from harness.run.arms import make_arms
from methods.base import SamplerParams
from methods.engine.draft_lm import LMDrafter, NarrowConfig, NarrowLM
from methods.engine.grow import best_shape, paths_of
from methods.engine.heads import IndependentHeadsDrafter, PublishedHeadsDrafter, SequentialHeadsDrafter
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree
from methods.engine.verify import typical, walk
from methods.medusa import TREES

GREEDY = SamplerParams(32, STOP_IDS)


def observed(tiny: TinyModel, drafter: Any, n: int = 12) -> tuple[list[int], Tensor]:
    """A text and its features, of which the drafter has seen n pairs."""
    text = tiny.prompts[1][:40]
    features, _ = tiny.loaded.target.prefill(text, 1)
    drafter.start(120, None, text[0])
    drafter.observe(text[1 : n + 1], features[:n])
    return text, features


# ---- heads ----


def slow_head(tiny: TinyModel, kind: str, k: int, feature: Tensor, tokens: list[int]) -> Tensor:
    """Logits of head k, from the file's weights. tokens: from the root to the node (Hydra reads them)."""
    state, _ = read_state(TINY.parent / kind, {})
    up, bias, down = (state[f"heads.{k}.{name}"].double() for name in ("up.weight", "up.bias", "down.weight"))
    embedding, lm_head = tiny.loaded.target.embedding, tiny.loaded.target.lm_head
    x = torch.cat([feature, *(embedding[t] for t in tokens)]) if kind == "hydra" else feature
    logits: Tensor = lm_head(feature + down @ F.silu(up @ x + bias))
    return logits


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_a_level_of_a_tree_is_drafted_by_its_own_head_on_the_last_feature(kind: str, tiny: TinyModel) -> None:
    drafter = tiny.loaded.drafter_of(kind)
    assert isinstance(drafter, IndependentHeadsDrafter if kind == "medusa" else SequentialHeadsDrafter)
    tree = Tree([0, 7, 8, 9, 10, 11, 12], [-1, 0, 0, 2, 1, 3, 4])
    for n in (12, 20):
        text, features = observed(tiny, drafter, n)
        feature, root = features[n - 1], text[n]
        assert close(drafter.root_logits()[0], slow_head(tiny, kind, 0, feature, [root]))
        for node, logits in expand_in_levels(drafter, tree).items() if kind == "hydra" else ():
            path = texts_of(tree)[node][1:]
            assert close(logits, slow_head(tiny, kind, len(path), feature, [root, *path]))
        if kind == "medusa":
            for level in (1, 2, 3):
                logits = drafter.expand(torch.tensor([3, 4]), torch.tensor([-1, -1]), torch.eye(2, dtype=torch.bool))
                assert logits.shape[0] == 1 and close(logits[0], slow_head(tiny, kind, level, feature, []))
        drafter.root_logits()  # a tree anew, after which level 1 is head 1 again
        again = drafter.expand(torch.tensor([5]), torch.tensor([-1]), torch.ones(1, 1, dtype=torch.bool))
        assert close(again[0], slow_head(tiny, kind, 1, feature, [root, 5]))


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_a_tree_deeper_than_there_are_heads_is_refused(kind: str, tiny: TinyModel) -> None:
    with pytest.raises(UserError, match="5 levels.* has 4: choose another tree"):
        make_arms((kind,), "paper", {"tree": "0 00 000 0000 00000"}, CONFIG, None)
    with pytest.raises(ValueError, match="more than 4 levels, and there are 4 heads"):
        tiny.decode(kind, tiny.prompts[0], GREEDY, tree="0 00 000 0000 00000 000000")


def test_the_published_tree_has_its_63_nodes_in_four_levels() -> None:
    paths = paths_of(TREES["mc_sim_7b_63"])
    assert len(set(paths)) == 63 and [sum(len(p) == d for p in paths) for d in (1, 2, 3, 4)] == [10, 28, 23, 2]


def test_a_chosen_tree_has_the_nodes_of_the_highest_products() -> None:
    generator = torch.Generator().manual_seed(0)
    accuracies = torch.rand(3, 4, generator=generator).sort(descending=True).values.tolist()
    every = [path for n in (1, 2, 3) for path in product(range(4), repeat=n)]

    def value(path: tuple[int, ...]) -> float:
        return math.prod(accuracies[level][rank] for level, rank in enumerate(path))

    for total in (1, 5, 30, 84, 200):
        assert set(best_shape(accuracies, total)) == set(sorted(every, key=value, reverse=True)[:total])
    assert best_shape([[0.5, 0.0, 0.2], [0.1, 0.0, 0.0]], 6)[-2:] == [(1,), (2,)]  # a better sibling of no use hides nothing
    assert set(best_shape([[0.5, 0.0], [0.0, 0.0]], 6)) == {(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)}  # zeros break nothing


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_a_chosen_tree_is_that_of_the_heads_held_out_accuracies(kind: str, tiny: TinyModel) -> None:
    spy = tiny.spy()
    generation = tiny.decode(kind, tiny.prompts[0], GREEDY, target=spy, tree="chosen", nodes=17)
    assert generation.token_ids == tiny.vanilla(tiny.prompts[0], GREEDY).token_ids
    shape = best_shape(json.loads((TINY.parent / kind / "config.json").read_text())["accuracies"], 17)
    wanted = sorted(map(len, shape))
    assert spy.trees and all(sorted(tree.depths()[1:]) == wanted for tree in spy.trees)
    assert make_arms((kind,), "chosen", {}, CONFIG, None)[0].options["tree"] == "chosen"


@pytest.mark.parametrize("method", ["medusa", "medusa-typical", "hydra"])
def test_a_number_of_nodes_is_for_a_chosen_tree_alone(method: str) -> None:
    with pytest.raises(UserError, match=f"method {method}: nodes=20 is for tree=chosen; tree='mc_sim_7b_63' has its own"):
        make_arms((method,), "paper", {"nodes": "20"}, CONFIG, None)
    assert make_arms((method,), "chosen", {"nodes": "20"}, CONFIG, None)[0].options == {
        **methods.get(method).options, "tree": "chosen", "nodes": 20,
    }  # fmt: skip


def test_a_tree_of_no_known_name_is_refused_with_the_names() -> None:
    with pytest.raises(UserError, match="tree='mc_sim_9b': known are mc_sim_7b_63, chosen, or words of digits"):
        make_arms(("medusa",), "paper", {"tree": "mc_sim_9b"}, CONFIG, None)


# ---- typical acceptance ----


def test_typical_acceptance_takes_the_deepest_path_of_typical_tokens() -> None:
    chooser = Chooser(SamplerParams(1, temperature=1.0, key=3))
    p = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.1, 0.1, 0.1, 0.7], [0.02, 0.9, 0.05, 0.03], [0.25, 0.25, 0.25, 0.25]]).double()
    tree = Tree([0, 0, 1, 1, 2], [-1, 0, 0, 2, 2])  # node 3, token 1, has p = 0.9 after node 2; node 4, token 2, p = 0.05
    rows = torch.stack([p[0], p[1], p[2], p[3], p[3]]).log()
    entropy = float(-(p[0][:3] * p[0][:3].log()).sum())
    assert 0.1 < 0.3 * math.exp(-entropy) < 0.3
    assert typical(0.9, 0.3)(tree, rows, chooser, 5).path == [0, 2, 3]
    assert typical(0.01, 9.0)(tree, rows, chooser, 5).path == [0, 2, 3]  # both of node 2's children: the likelier
    assert typical(0.5, 9.0)(tree, rows, chooser, 5).path == [0, 1]  # epsilon is the ceiling of the threshold
    assert typical(0.9, 9.0)(tree, rows, chooser, 5).path == [0]
    bonus = typical(0.9, 0.3)(tree, rows, chooser, 5).bonus
    assert bonus == chooser.draw(chooser.law(rows[3]), 7)


def test_typical_acceptance_is_the_walk_at_t_0_and_another_law_above(tiny: TinyModel) -> None:
    m = methods.get("medusa-typical")
    assert not m.exact
    for prompt in tiny.prompts[:2]:
        assert tiny.decode(m.name, prompt, GREEDY).token_ids == tiny.vanilla(prompt, GREEDY).token_ids
    logits, chooser = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), Chooser(SamplerParams(1))
    tree = Tree([0, int(logits[0].argmax()), 2], [-1, 0, 1])
    assert typical(0.09, 0.3)(tree, logits, chooser, 1) == walk(tree, logits, chooser, 1)
    seen = {}
    for small in law.small_options(m):
        for case in law.cases(3, "quick"):
            seen[case.params.temperature > 0, case.name] = law.decode_law(m.name, m.build(**small), case).deviation
    assert max(d for (drawn, _), d in seen.items() if drawn) > 1e-2  # layer 1 catches it
    assert max(d for (drawn, _), d in seen.items() if not drawn) <= law.TOLERANCE


# ---- draft LMs ----


@torch.inference_mode()
def test_a_draft_lm_in_steps_and_levels_is_the_model_over_every_whole_text(tiny: TinyModel) -> None:
    drafter = tiny.loaded.drafter_of("lm")
    assert isinstance(drafter, LMDrafter)
    text, features = observed(tiny, drafter, 10)
    seen = text[:11]
    nothing = features[:0]  # features are not looked at

    def slow(path: tuple[int, ...]) -> Tensor:
        logits: Tensor = drafter.model(torch.tensor([[*seen, *path]]), use_cache=False).logits[0, -1]
        return logits

    def same(a: Tensor, b: Tensor) -> bool:  # transformers' norms round to float32
        return bool((a - b).abs().max() < 1e-5)

    tree = Tree([0, 7, 8, 9, 10, 11, 12], [-1, 0, 0, 2, 1, 3, 5])
    for accepted in ([2, 3, 5, 6], [], [1], [2, 3], [2, 3, 5], []):  # ends of paths in the tree, and paths cut short
        assert same(drafter.root_logits()[0], slow(()))
        for node, logits in expand_in_levels(drafter, tree).items():
            assert same(logits, slow(texts_of(tree)[node][1:]))
        new = [*(tree.tokens[node] for node in accepted), 20 + len(accepted)]
        drafter.observe(new, nothing)
        seen = [*seen, *new]
    assert same(drafter.root_logits()[0], slow(()))


@torch.inference_mode()
def test_keys_of_accepted_drafts_are_not_computed_again(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter, ran = tiny.loaded.drafter_of("lm"), []
    run = LMDrafter._run
    monkeypatch.setattr(LMDrafter, "_run", lambda self, tokens, *rest: (ran.append(len(tokens)), run(self, tokens, *rest))[1])
    _, features = observed(tiny, drafter, 10)
    for token, parent in ((7, -1), (8, 0), (9, 1)):
        drafter.expand(torch.tensor([token]), torch.tensor([parent]), torch.ones(1, parent + 2, dtype=torch.bool))
    drafter.observe([7, 8, 9, 30], features[:0])
    assert ran == [11, 1, 1, 1, 1]  # the text's first token is read, too; of four new tokens the bonus alone is run


@torch.no_grad()
def test_a_narrow_lm_folded_is_the_same_model_with_tables_of_its_own() -> None:
    torch.manual_seed(0)
    narrow = NarrowLM(NarrowConfig(48, 30, 16, 2, 32, 1e-5, 10000.0)).eval()
    embedding, lm_head, ids = torch.randn(30, 48), torch.randn(30, 48), torch.randint(30, (2, 9))
    folded = narrow.folded(embedding, lm_head)
    assert folded.config.hidden_size == 16 and folded.get_input_embeddings().weight.shape == (30, 16)
    wanted = narrow(F.embedding(ids, embedding)) @ lm_head.T
    assert torch.allclose(folded(ids).logits, wanted, atol=1e-4)


def test_a_whole_lm_with_the_targets_tokenizer_drafts(tmp_path: Path) -> None:
    own = TinyModel(load(with_drafter("lm", hub_lm(tmp_path / "lm")), "float64", drafters=["lm"]))
    assert own.loaded.sha_of("lm") and own.loaded.drafter is None
    for params in (GREEDY, SamplerParams(16, STOP_IDS, temperature=1.0, key=4)):
        generation = own.decode("sps", own.prompts[0], params, gamma=3)
        assert params.temperature or generation.token_ids == own.vanilla(own.prompts[0], params).token_ids
        assert generation.trace is not None and set(generation.trace.tree_size) == {3}


def test_a_whole_lm_may_be_given_as_head(tmp_path: Path) -> None:
    given = load(CONFIG, "float32", head=hub_lm(tmp_path / "lm"), drafters=["lm"])
    assert given.sha_of("lm") == load(with_drafter("lm", tmp_path / "lm"), "float32", drafters=["lm"]).sha_of("lm")
    refused(
        run(tmp_path / "out", f"--method eagle2 --task gsm8k --head {tmp_path / 'lm'}"), "holds a draft LM, and none of eagle2"
    )
    dry = run(tmp_path / "out", f"--method sps --task gsm8k --head {tmp_path / 'lm'} --dry-run")
    assert dry.code == 0, dry.err


def test_the_models_own_head_is_one_whatever_lies_beside_it(tmp_path: Path) -> None:
    config = model_config(str(tiny_copy(tmp_path / "copy")))
    assert config.head_folder is not None and drafter_kind(config.head_folder) == "eagle"
    (config.head_folder / "tokenizer.json").write_text("{}")
    values = json.loads((config.head_folder / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (config.head_folder / "config.json").write_text(json.dumps(values))
    found = drafter_folders(config, config.head_folder)
    assert found["eagle"] == config.head_folder and found["lm"] == config.drafter_folder("lm")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"extra_token": "zzz"}, r"another tokenizer than tiny: 'zzz' \(384 there, not here\); spec"),
        ({"swap": True}, r"another tokenizer than tiny: 'A' \(\d+ there, \d+ here\), 'B' "),
        ({"vocab": 400}, "has logits for 400 tokens, tiny for 384"),
    ],
)
def test_a_draft_lm_of_other_tokens_is_refused_and_they_are_named(made: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load(with_drafter("lm", hub_lm(tmp_path / "lm", **made)), "float32", drafters=["lm"])


def test_tokens_that_differ_are_named_lowest_id_first() -> None:
    assert differing_tokens({"a": 0, "b": 1, "c": 2}, {"a": 0, "b": 2, "d": 1}) == [
        "'b' (2 there, 1 here)", "'d' (1 there, not here)", "'c' (not there, 2 here)",
    ]  # fmt: skip


# ---- heads in the authors' own layout ----


def test_heads_in_the_authors_layout_have_lm_heads_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    state = published(tmp_path / "heads")
    assert drafter_kind(tmp_path / "heads") == "medusa"
    tiny = TinyModel(load(CONFIG, "float64", head=tmp_path / "heads", drafters=["medusa"]))
    drafter = tiny.loaded.drafter_of("medusa")
    assert isinstance(drafter, PublishedHeadsDrafter)
    with torch.inference_mode():
        _, features = observed(tiny, drafter)
        f = features[11]
        made = [drafter.root_logits()[0], drafter.expand(torch.tensor([4]), torch.tensor([-1]), torch.ones(1, 1).bool())[0]]
        for k, logits in enumerate(made):
            weights = [state[f"{k}.{name}"].double() for name in ("0.linear.weight", "0.linear.bias", "1.weight")]
            assert close(logits, weights[2] @ (f + F.silu(weights[0] @ f + weights[1])))
    generation = tiny.decode("medusa", tiny.prompts[0], GREEDY, tree="0 1 2 00 10")
    assert generation.token_ids == tiny.vanilla(tiny.prompts[0], GREEDY).token_ids
    arguments = (
        f"run --model {TINY} --head {tmp_path / 'heads'} --method medusa --task gsm8k --limit 1 --source bundled --threads 1"
    )
    for preset, said in (
        ("paper", "4 levels, each of which takes a head, and tiny has 2: choose another tree"),
        ("chosen", "tree=chosen needs heads with held-out accuracies in their config.json; name a tree instead"),
    ):
        done = CliRunner().invoke(cli, [*arguments.split(), "--preset", preset, "--out", str(tmp_path / "out")])
        assert isinstance(done.exception, UserError) and str(done.exception).endswith(said)
    profile = ["profile", "--model", str(TINY), "--head", str(tmp_path / "heads"), "--method", "medusa", "--threads=1"]
    assert str(CliRunner().invoke(cli, profile).exception).endswith("tiny has 2: choose another tree")


# ---- what is refused ----


REFUSED = {
    "another target": ({"target_sha256": "0" * 64}, "trained for a target with sha256 0000000000000000..; tiny has"),
    "altered weights": ({"weights_sha256": "0" * 64}, "truncated or altered"),
    "another width": ({"hidden_size": 96}, "for a target with hidden_size 96; tiny has 64"),
    "a size that is none": ({"num_heads": 0}, "num_heads is 0; it must be a whole number of at least 1"),
    "a key too few": ({"intermediate_size": None}, "lacks 'intermediate_size'"),
    "fewer heads than weights": ({"num_heads": 3}, "unexpected key 'heads.3"),
    "accuracies that fit no head": ({"accuracies": [[0.5]]}, "accuracies must be a row of shares"),
}


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_heads_that_do_not_fit_are_refused_in_one_line(kind: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(CONFIG, "float32", head=edited(tmp_path, kind, **changes), drafters=[kind])
    assert said in str(error.value) and "\n" not in str(error.value)


HOLDS = {"medusa": "set of Medusa heads", "hydra": "set of Hydra heads", "sps": "draft LM", "eagle3": "draft head of EAGLE-3"}


@pytest.mark.parametrize(("holds", "asked"), [(h, a) for h in HOLDS for a in methods.DRAFTERS if a != {"sps": "lm"}.get(h, h)])
def test_a_drafter_named_where_another_kind_is_meant_is_called_what_it_is(holds: str, asked: str) -> None:
    update = {"head": str(TINY.parent / holds)} if asked == "eagle" else {"drafters": {asked: str(TINY.parent / holds)}}
    with pytest.raises(UserError, match=f"{holds} holds a {HOLDS[holds]}, where tiny should have a {methods.DRAFTERS[asked]}$"):
        load(CONFIG.model_copy(update=update), "float32", drafters=[asked])


def test_a_narrow_lm_made_for_another_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="draft LM in .* was trained for a target with sha256 0000"):
        load(CONFIG, "float32", head=edited(tmp_path, "sps", target_sha256="0" * 64), drafters=["lm"])


def test_methods_whose_drafter_a_model_lacks_are_left_out_and_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    bare = CONFIG.model_copy(update={"drafters": {}})
    names = {arm.name for arm in make_arms(("all",), "paper", {}, bare, bare.head_folder)}
    assert {"vanilla", "pld", "lookahead", "eagle2"} <= names and not {"sps", "medusa", "hydra"} & names
    said = capsys.readouterr().err
    assert "left out: method hydra needs a set of Hydra heads and model tiny has none: `harness train hydra --model " in said
    with pytest.raises(UserError, match="method sps needs a draft LM and model tiny has none: `harness train sps"):
        make_arms(("sps",), "paper", {}, bare, bare.head_folder)


def test_a_yaml_with_an_unknown_kind_of_drafter_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TINY.read_text().replace("medusa: medusa", "clover: medusa"))
    with pytest.raises(UserError, match="drafters"):
        read_model(file)


def test_the_paper_methods_run_from_the_command_line_and_records_name_their_weights(tmp_path: Path) -> None:
    arguments = ["run", "--model", str(TINY), "--task", "gsm8k", "--limit", "1", "--max-new-tokens", "12", "--source", "bundled",
                 "--dtype=float32", "--threads=1", "--out", str(tmp_path), *(f"--method={m}" for m in DRAFTING)]  # fmt: skip
    dry = CliRunner().invoke(cli, [*arguments, "--dry-run"])
    assert dry.exit_code == 0 and "missing: nothing" in dry.output
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    shas = {r["method"]: r["head_sha"] for r in read(tmp_path) if r["status"] == "ok"}
    for method in ("sps", "hf-assisted"):
        assert shas[method] == hashlib.sha256((TINY.parent / "sps" / "model.safetensors").read_bytes()).hexdigest()
    assert shas["medusa"] == shas["medusa-typical"] != shas["hydra"] and shas["vanilla"] is None


def test_heads_with_other_accuracies_are_other_heads_for_a_tree_may_be_chosen_by_them(tmp_path: Path) -> None:
    mine = tmp_path / "medusa"
    shutil.copytree(TINY.parent / "medusa", mine)
    before = load(CONFIG, "float32", head=mine, drafters=["medusa"]).sha_of("medusa")
    file = mine / "config.json"
    values = json.loads(file.read_text())
    values["accuracies"][0][0] = round(1 - values["accuracies"][0][0], 4)
    file.write_text(json.dumps(values))
    assert load(CONFIG, "float32", head=mine, drafters=["medusa"]).sha_of("medusa") != before


DRAFTING = {"sps": "sps", "hf-assisted": "sps", "medusa": "medusa", "medusa-typical": "medusa", "hydra": "hydra"}


def test_only_what_is_asked_for_is_loaded() -> None:
    loaded: Loaded = load(CONFIG, "float32", drafters=["hydra"])
    assert loaded.drafter is None and set(loaded.drafters) == {"hydra"} and loaded.drafter_of(None) is None
    assert (
        load_file(TINY.parent / "hydra" / "model.safetensors").keys()
        == fresh_tiny_model("float32").loaded.drafter_of("hydra").heads.state_dict().keys()
    )
