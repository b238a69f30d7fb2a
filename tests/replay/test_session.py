"""`harness replay`: from a ledger, or from nothing, to records and a table; what it refuses."""

from __future__ import annotations

import json
import lzma
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from command_line import harness
from made_up_records import measured
from made_up_replays import replay
from places import TINY
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file as torch_load
from safetensors.torch import save_file as torch_save

from harness.common.errors import UserError
from harness.ledger.ledger import read
from harness.replay import record, session
from harness.replay.store import FOLDER

MADE = ("--model", str(TINY), "--task", "mt_bench", "--limit", "1", "--source", "bundled", "--dtype", "float32",
        "--max-new-tokens", "12")  # fmt: skip


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vanilla and EAGLE-2 of one conversation of two turns, at both temperatures."""
    out = tmp_path_factory.mktemp("replay") / "ledger"
    made = harness("run", "--method", "eagle2", "--temperature", "0", "--temperature", "1", *MADE, "--out", str(out))
    assert made.code == 0, made.out + made.err
    return out


def test_a_ledgers_own_steps_come_out(ledger: Path, tmp_path: Path) -> None:
    """Both turns at both temperatures: a replay's columns are those of the run's traces."""
    made = harness("replay", "--results", str(ledger), "--model", str(TINY), "--policy", "eagle2", "--policy", "pld",
                   "--costs", "gpu-radar", "--out", str(tmp_path))  # fmt: skip
    assert made.code == 0, made.out + made.err
    assert made.out.count("the same in all 2") == 2  # of eagle2 at each temperature: pld was not run
    assert "gpu-radar" in made.out + made.err and "τ" not in made.out + made.err.splitlines()[0]
    lines = [json.loads(line) for line in (ledger / "records.jsonl").read_text().splitlines()]
    live = {(r["temperature"], r["turn"]): r for r in lines if r["method"] == "eagle2" and not r["is_warmup"]}
    found = [r for r in record.read(tmp_path) if r.method == "eagle2"]
    assert {(r.temperature, r.turn) for r in found} == set(live) == {(0.0, 1), (0.0, 2), (1.0, 1), (1.0, 2)}
    for r in found:
        own = live[r.temperature, r.turn]
        assert (r.accepted, r.sizes, r.tokens) == (own["trace"]["accepted"], own["trace"]["tree_size"], len(own["token_ids"]))
        assert all(calls == [1, 10, 10, 10, 10, 10] for calls in r.calls)
    before = (tmp_path / record.FILE).read_bytes()
    again = harness("replay", "--results", str(ledger), "--model", str(TINY), "--policy", "eagle2", "--out", str(tmp_path))
    assert again.code == 0 and (tmp_path / record.FILE).read_bytes() == before  # what is there is not made again
    with record.only_writer(tmp_path):
        assert "another process writes replays" in refused("--results", str(ledger), "--model", str(TINY), "--policy", "eagle2",
                                                           "--out", str(tmp_path))  # fmt: skip
    (tmp_path / record.FILE).write_bytes(before[:-40])  # torn
    again = harness("replay", "--results", str(ledger), "--model", str(TINY), "--policy", "all", "--out", str(tmp_path))
    assert again.code == 0, again.err
    assert {r.method for r in record.read(tmp_path)} >= {"eagle2", "eagle1", "eagle2-no-both", "vanilla"}


def test_a_run_with_other_steps_ends_the_command_after_its_table(ledger: Path, tmp_path: Path) -> None:
    results = tmp_path / "ledger"
    shutil.copytree(ledger, results)
    lines = (results / "records.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    i = next(
        i for i, r in enumerate(found) if r["method"] == "eagle2" and not r["is_warmup"] and len(r["trace"]["tree_size"]) > 1
    )
    found[i]["trace"]["tree_size"][0] += 1
    (results / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    out = tmp_path / "out"
    made = harness("replay", "--results", str(results), "--model", str(TINY), "--policy", "eagle2", "--out", str(out))
    exact = next(r for r in read(results) if r["method"] == "eagle2")["row_invariant"]
    assert made.code == (2 if exact else 0), made.err
    assert ("!! the same in 1 of 2" if exact else "the same in 1 of 2") in made.out
    assert not exact or "an error of the harness: eagle2 at T = " in made.err.splitlines()[-1]
    assert (out / "tables" / "replay.csv").is_file()


def test_one_temperature_of_a_ledger_has_the_prompts_of_later_turns(ledger: Path, tmp_path: Path) -> None:
    """At T = 1 the second turn's prompt holds the answer at T = 0 to the first, which is not asked for."""
    made = harness("replay", "--results", str(ledger), "--model", str(TINY), "--policy", "eagle2", "--temperature", "1",
                   "--out", str(tmp_path))  # fmt: skip
    assert made.code == 0, made.out + made.err
    assert {(r.temperature, r.turn) for r in record.read(tmp_path)} == {(1.0, 1), (1.0, 2)}


def test_replays_of_another_head_are_not_this_heads(ledger: Path, tmp_path: Path) -> None:
    """What is there of one head is not taken as the other's: each is replayed, and each keeps its own."""
    other = tmp_path / "other"
    shutil.copytree(TINY.parent / "head", other)
    weights = other / "model.safetensors"
    changed = {name: weight.flip(0) if weight.ndim == 2 else weight for name, weight in torch_load(weights).items()}
    before = sha256(weights.read_bytes()).hexdigest()
    torch_save(changed, weights)
    config = other / "config.json"
    config.write_text(config.read_text().replace(before, sha256(weights.read_bytes()).hexdigest()))
    own = ("--results", str(ledger), "--model", str(TINY), "--policy", "eagle2", "--temperature", "0", "--out", str(tmp_path))
    for head in ((), ("--head", str(other))):
        made = harness("replay", *own, *head)
        assert made.code == 0, made.out + made.err
    found = [(r.head_id, r.turn) for r in record.read(tmp_path)]
    assert len(found) == len(set(found)) == 4 and len({head for head, _ in found}) == 2


def test_one_setting_under_two_presets_is_one_setting() -> None:
    both = [replay("opt-tree", i, [1], [[1]], [4], {"total": 4}).model_copy(update={"preset": p}) for i, p in enumerate("ab")]
    (((_, method, preset, _), own),) = record.of_methods(both)
    assert (method, preset, own) == ("opt-tree", "a", both)


def test_answers_are_made_where_no_ledger_is_named(tmp_path: Path) -> None:
    made = harness("replay", *MADE, "--policy", "policies", "--out", str(tmp_path), "--json")
    assert made.code == 0, made.out + made.err
    rows = made.value
    assert {r["method"] for r in rows} >= {"best-first", "opt-tree", "oracle-stop", "random-stop"}
    assert (tmp_path / "tables" / "replay.csv").is_file()


def test_answers_of_two_budgets_are_not_pooled(ledger: Path, tmp_path: Path) -> None:
    """Which ones is said on the command line, else it is refused before anything is decoded."""
    results = tmp_path / "ledger"
    shutil.copytree(ledger, results)
    made = harness("run", *MADE[:-1], "10", "--method", "eagle2", "--out", str(results))
    assert made.code == 0, made.out + made.err
    own = ("--results", str(results), "--model", str(TINY), "--policy", "eagle2", "--temperature", "0", "--out", str(tmp_path))
    assert "several max_new_tokens: 10, 12; name one with --max-new-tokens" in refused(*own)
    assert not (tmp_path / record.FILE).exists()
    assert "no answers of vanilla's to these tasks at these temperatures of source 'hub'" in refused(*own, "--source", "hub")
    assert harness("replay", *own, "--source", "bundled", "--max-new-tokens", "10").code == 0
    assert {r.max_new_tokens for r in record.read(tmp_path)} == {10}


def test_all_tasks_are_those_of_the_model() -> None:
    """A model of pictures has tasks of its own, and cannot be asked the paper's six."""
    made: Any = [measured("vanilla", i, [1], task=task) for i, task in enumerate(("digits", "gsm8k"))]
    asked = session.ReplayRequest(policies=("eagle2",), results=Path("x"))
    assert [r["task"] for r in session._chosen(made, asked, "digits-mosaic")] == ["digits"]
    assert [r["task"] for r in session._chosen(made, asked, "smollm2-135m")] == ["gsm8k"]
    with pytest.raises(UserError, match="'gsm8k' is a task of text: model digits-mosaic can be asked digits"):
        session._chosen(made, replace(asked, tasks=("gsm8k",)), "digits-mosaic")


def refused(*arguments: str) -> str:
    made = harness("replay", *arguments)
    assert made.code == 2, made.out + made.err
    assert "Traceback" not in made.err
    return made.err.splitlines()[-1]


def test_what_is_wrong_is_one_line(ledger: Path, tmp_path: Path) -> None:
    own = ("--results", str(ledger), "--model", str(TINY), "--out", str(tmp_path))
    assert "at least one --policy must be named" in refused(*own)
    assert "name the ledger to replay (--results)" in refused("--policy", "eagle2")
    assert "unknown method 'eagle4'" in refused(*own, "--policy", "eagle4")
    assert "draws its drafts at T = 1" in refused(*own, "--policy", "eagle1")
    assert "no answers of vanilla's" in refused(*own, "--policy", "eagle2", "--task", "gsm8k")
    assert "none of the known costs: gpu-radar" in refused(*own, "--policy", "eagle2", "--costs", "nowhere")
    assert "no such costs" in refused(*own, "--policy", "cast+costs=call=1") or "none of the known costs" in refused(
        *own, "--policy", "cast+costs=call=1"
    )
    assert "are of smollm2-135m, and the target is tiny: --as-if" in refused(
        *own, "--policy", "eagle2", "--costs", "smollm2-135m-AMD_EPYC-1-threads-bfloat16"
    )
    assert "are of tiny in float32" in refused(*own, "--policy", "eagle2", "--dtype", "float64")
    assert "--choose takes --policy, and the --costs" in refused(*own, "--policy", "eagle2", "--choose", str(tmp_path / "c.json"))
    (tmp_path / "c.json").write_text('[{"method": "eagle2"}]')
    assert "holds no choices" in refused(*own, "--choices", str(tmp_path / "c.json"))


def _changed(file: Path, **metadata: str) -> None:
    with safe_open(file, framework="numpy") as opened:
        arrays: dict[str, Any] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        told = {**opened.metadata(), **metadata}
    save_file(arrays, file, told)


def test_pools_of_another_head_are_refused(ledger: Path, tmp_path: Path) -> None:
    own = ("--results", str(ledger), "--model", str(TINY), "--out", str(tmp_path), "--temperature", "0")
    assert harness("replay", *own, "--policy", "eagle2").code == 0
    files = sorted((tmp_path / FOLDER).rglob("*.safetensors"))
    assert len(files) == 2  # a turn each
    _changed(files[0], head_id="0123456789abcdef")
    assert "drafted with another head ('0123456789abcdef'" in refused(*own, "--policy", "opt-tree")
    files[0].write_bytes(files[1].read_bytes()[:5000])
    assert "cannot be read" in refused(*own, "--policy", "opt-tree")
    files[0].write_bytes(files[1].read_bytes())
    assert "over another answer than the ledger's" in refused(*own, "--policy", "opt-tree")
    files[0].unlink()
    assert harness("replay", *own, "--policy", "opt-tree").code == 0
    (tmp_path / record.PACKED).write_bytes(lzma.compress((tmp_path / record.FILE).read_bytes()))
    kept = record.read(tmp_path)
    (tmp_path / record.FILE).unlink()
    assert record.read(tmp_path) == kept
    assert "are packed: `unxz" in refused(*own, "--policy", "opt-tree")
    (tmp_path / record.PACKED).unlink()
    (tmp_path / record.FILE).write_text('{"answer": "x"}\n')
    assert "is no replay" in refused(*own, "--policy", "opt-tree")


def test_choosing_and_replaying_what_was_chosen(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On held-out prompts the chosen options are the fastest of the candidates; they are what the table has."""
    import harness.replay.choose as choose_module
    from harness.replay.choices import read
    from harness.replay.price import prices_named

    prompts = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22, 23, 24]]
    monkeypatch.setattr(choose_module, "held_out_prompts", lambda *_: prompts)
    monkeypatch.setattr(choose_module, "checked_prompts", lambda: [])
    file = tmp_path / "choices.json"
    made = harness(
        f"replay --model {TINY} --policy opt-tree --policy eagle2-grid --costs gpu-radar --costs call=0.3,verify=1.5",
        f"--conversations 2 --max-new-tokens 12 --choose {file} --out {tmp_path}",
    )
    assert made.code == 0, made.out + made.err
    choices = read(file)
    assert {(c.method, c.costs) for c in choices} == {
        (m, c) for m in ("opt-tree", "eagle2-grid") for c in ("gpu-radar", "call=0.3,verify=1.5")
    }
    dear = {c.method: c for c in choices if c.costs.startswith("call")}
    assert dear["eagle2-grid"].options["depth"] <= 3  # where a call costs as much as a third of a step, few are made
    assert all(c.speedup <= 20 and c.tried > 100 for c in choices)
    assert prices_named(["call=0.3,verify=1.5"])["call=0.3,verify=1.5"].step([1, 10], 59, 3, 99) == pytest.approx(2.1)
    shown = harness("replay", "--results", str(ledger), "--model", str(TINY), "--choices", str(file), "--temperature", "0",
                    "--out", str(tmp_path))  # fmt: skip
    assert shown.code == 0, shown.out
    assert "over eagle2-grid" in shown.out and "options chosen on 2 held-out conversations" in shown.out


def test_both_kinds_of_heads_are_replayed_and_a_policy_takes_the_one_that_is_named(ledger: Path, tmp_path: Path) -> None:
    """From one command; each in a pool of its own, and a policy with the other head's drafts is another replay."""
    words = ["replay", "--results", str(ledger), "--model", str(TINY), "--temperature", "0", "--out", str(tmp_path)]
    first = harness(*words, "--policy", "eagle2", "--policy", "eagle3", "--policy", "opt-tree")
    assert first.code == 0, first.out + first.err
    second = harness(*words, "--policy", "opt-tree", "--drafter", "eagle3")
    third = harness(*words, "--policy", "opt-tree", "--head", str(TINY.parent / "eagle3"))
    assert second.code == third.code == 0, second.err + third.err
    found = record.read(tmp_path)
    assert sorted((r.method, str(r.drafter)) for r in found if r.turn == 1) == [
        ("eagle2", "eagle"), ("eagle3", "eagle3"), ("opt-tree", "eagle"), ("opt-tree", "eagle3"),
    ]  # fmt: skip
    heads = {r.drafter: r.head_id for r in found}
    assert len(set(heads.values())) == 2 and all(r.head_id == heads[r.drafter] for r in found)
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
    assert "unknown kind of EAGLE head 'medusa'; known: eagle, eagle3" in refused(*words[1:], "--policy", "eagle2", "--drafter",
                                                                                 "medusa")  # fmt: skip
    shipped = "smollm2-135m-AMD_EPYC-1-threads-bfloat16"
    said = refused(*words[1:], "--policy", "eagle3", "--as-if", "--costs", shipped)
    assert "were measured without a draft head of EAGLE-3: `harness costs` measures those of a model that has one" in said
