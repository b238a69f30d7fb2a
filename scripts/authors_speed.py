"""EAGLE-2 at the paper's tree by its authors' code and by this project's, on the same weights. Nothing here depends on it.

The authors' code (github SafeAILab/EAGLE at commit bfeb532, EAGLE-2's first release; later ones take other arguments) is a
checkout outside this repository, with an environment of its own: it needs an old transformers.

    python3 -m venv /tmp/eagle-venv
    /tmp/eagle-venv/bin/pip install torch==2.13.0 "numpy<2" transformers==4.36.2 safetensors accelerate

    python scripts/authors_speed.py --checkout /tmp/eagle-authors --python /tmp/eagle-venv/bin/python --out authors_speed.json

Both decode the same prompts greedily in float32, each in its own process, one at a time, in an order that rotates: total-token
60, depth 5, top-k 10 there; `eagle2` with preset `paper` here, without `stop_early`. Both ignore stop ids. Before any is timed,
each tells every tree that it drafted, and these are compared as sets of paths: with the same trees the work is the same.

`tokens_per_second`: accepted and bonus tokens of all steps over the time of all steps, the prompt's run left out of both. A step
is a verification and a draft, in both. `with_prompt`: the same over the whole call, in which theirs drafts once more at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import (
    Answer,
    Child,
    common_prefix,
    environment,
    in_words,
    positive,
    prompts_of,
    rounds,
    serve,
    spread,
    write_record,
)

MODEL = "smollm2-135m"
TOTAL_TOKEN, DEPTH, TOP_K = 60, 5, 10  # in the authors' words; 59 draft nodes in 6 levels in ours


def paths_of(tokens: list[int], parents: list[int]) -> list[list[int]]:
    """Draft nodes as their paths' tokens, sorted. tokens [n]; parents [n]: node numbers that begin at 1, 0 for the root."""
    paths: list[list[int]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append([*(paths[parent - 1] if parent else []), token])
    return sorted(paths)


def ours(threads: int) -> tuple[dict[str, Any], Answer]:
    import torch

    import methods
    from harness.common.machine import keep_freed_memory
    from harness.load.config import model_config
    from harness.load.model import load
    from harness.run.arms import make_arms
    from methods.base import SamplerParams

    keep_freed_memory()
    torch.set_num_threads(threads)
    config = model_config(MODEL)
    loaded = load(config, "float32")
    (arm,) = make_arms(("eagle2",), "paper", {}, config, config.head_folder)
    decode, drafter = arm.method.build(**arm.options), loaded.drafter_of(methods.EAGLE)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        made = decode(request["prompt"], loaded.target, drafter, SamplerParams(request["n"], keep_trees=request["trees"]))
        wall_s = time.perf_counter() - started
        assert made.trace is not None
        return {
            "tokens": made.token_ids, "accepted": made.trace.accepted, "seconds": wall_s - made.prefill_s, "wall_s": wall_s,
            "trees": [paths_of(tree.tokens, tree.parents) for tree in made.trace.trees],
        }  # fmt: skip

    facts = {"engine": loaded.target.engine, "torch": torch.__version__, **loaded.target.engine_facts}
    return {**facts, "options": arm.options, "fp32_peak": fp32_peak(), "gflop": gflop(loaded.target.model, drafter)}, answer


def fp32_peak() -> float:
    """GFLOP/s of torch's product of two 2048 x 2048 matrices, the best of five: what this CPU can do in float32."""
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(times) / 1e9


def gflop(model: Any, drafter: Any) -> dict[str, float]:
    """GFLOP of the matrix products with weights, for one row each: `target`, `head` (the EAGLE layer), `lm_head`."""
    lm_head = model.lm_head.weight.numel()
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    head = sum(p.numel() for p in drafter.head.parameters() if p.dim() == 2)
    return {"target": 2 * (layers + lm_head) / 1e9, "head": 2 * head / 1e9, "lm_head": 2 * lm_head / 1e9}


def authors(checkout: str, threads: int, target: str, head: str) -> tuple[dict[str, Any], Answer]:
    """A child that runs the authors' code. target, head: folders in the layout that it reads."""
    sys.path.insert(0, checkout)
    import warnings

    import torch

    warnings.simplefilter("ignore")  # of an old transformers under a new torch
    import transformers

    class NoStop:
        """In place of the tokenizer, of which only the stop id is read: -1 is no token."""

        eos_token_id = -1

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoStop:
            return cls()

    transformers.AutoTokenizer = NoStop
    transformers.utils.logging.set_verbosity_error()  # it says that the rotary tables are new, which they should be
    from eagle.model import ea_model

    torch.set_num_threads(threads)
    model = ea_model.EaModel.from_pretrained(
        base_model_path=target, ea_model_path=head, total_token=TOTAL_TOKEN, depth=DEPTH, top_k=TOP_K, torch_dtype=torch.float32
    )
    model.eval()
    accepted: list[int] = []
    trees: list[tuple[Any, Any]] = []
    prompt_ended = 0.0
    verify, begin, draft = ea_model.evaluate_posterior, ea_model.initialize_tree, model.ea_layer.topK_genrate

    def noting_accepted(*args: Any) -> Any:
        found = verify(*args)
        accepted.append(int(found[1]))
        return found

    def noting_time(*args: Any) -> Any:
        nonlocal prompt_ended
        found = begin(*args)
        prompt_ended = time.perf_counter()
        return found

    def noting_trees(*args: Any, **kwargs: Any) -> Any:
        found = draft(*args, **kwargs)
        trees.append((found[0][0], found[2][0, 0]))
        return found

    ea_model.evaluate_posterior, ea_model.initialize_tree = noting_accepted, noting_time
    model.ea_layer.topK_genrate = noting_trees

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        accepted.clear()
        trees.clear()
        started = time.perf_counter()
        # it stops once it has more than so many tokens, of which the first is the prompt's own
        ids = model.eagenerate(torch.tensor([request["prompt"]]), max_new_tokens=request["n"] - 1)
        ended = time.perf_counter()
        return {
            "tokens": ids[0, len(request["prompt"]) :].tolist(), "accepted": list(accepted), "seconds": ended - prompt_ended,
            "wall_s": ended - started, "trees": [told(*tree) for tree in trees[:-1]] if request["trees"] else [],
        }  # fmt: skip

    def told(tokens: Any, mask: Any) -> list[list[int]]:
        # a node's ancestors are the columns set in its row, itself the last: nodes are in the order of levels
        return sorted([tokens[row[1:].nonzero()[:, 0] + 1].tolist() for row in mask[1:]])

    facts = {"engine": "the authors' code", "torch": torch.__version__, "transformers": transformers.__version__}
    return facts, answer


def write_folders(folder: Path) -> tuple[Path, Path]:
    """The target and the EAGLE head in the layout that the authors' code reads."""
    import torch
    from safetensors.torch import load_file

    from harness.load.config import model_config
    from harness.load.weights import weights_folder

    config = model_config(MODEL)
    source, _ = weights_folder(config)
    target, head = folder / "target", folder / "head"
    target.mkdir()
    head.mkdir()
    values = json.loads((source / "config.json").read_text())
    rope = values.pop("rope_parameters")
    values |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": "float32"}
    (target / "config.json").write_text(json.dumps(values))
    (target / "model.safetensors").symlink_to(source / "model.safetensors")
    assert config.head_folder is not None
    ours = json.loads((config.head_folder / "config.json").read_text())
    values |= {key: ours[key] for key in values.keys() & ours.keys()}
    (head / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 1, "bias": ours["bias"]}))
    state = {name: weight.float() for name, weight in load_file(config.head_folder / "model.safetensors").items()}
    state["embed_tokens.weight"] = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    torch.save(state, head / "pytorch_model.bin")
    return target, head


def compare(options: argparse.Namespace) -> None:
    """Run the comparison, print it and write its record."""
    from harness.common.errors import UserError

    try:
        prompts = prompts_of(MODEL, options.prompts, 40, 180)
    except UserError as e:
        sys.exit(str(e))
    threads = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        target, head = write_folders(Path(folder))
        words = ["--threads", threads, "--checkout", options.checkout, "--target", target, "--head", head]
        children = [
            Child("ours", [sys.executable, __file__, "--child", "ours", "--threads", threads], options.threads, options.engine),
            Child("authors", [options.python, __file__, "--child", "authors", *words], options.threads),
        ]
        record = {"environment": environment(options.threads), "model": MODEL, "dtype": "float32", "n_new": options.n}
        (told,) = rounds(children, prompts, 1, n=options.n, trees=True)  # which warms up, too
        answers = rounds(children, prompts, options.rounds, n=options.n, trees=False)
        for child in children:
            child.close()
    same = {
        # theirs may take one step more, as it counts the prompt's own token otherwise
        "trees": sum(a == b for p in told for a, b in zip(p[0]["trees"], p[1]["trees"], strict=False)),
        "of_trees": sum(min(len(p[0]["trees"]), len(p[1]["trees"])) for p in told),
        "accept_lengths": [common_prefix(p[0]["accepted"], p[1]["accepted"]) for p in told],
        "of_accept_lengths": [min(len(a["accepted"]) for a in p) for p in told],
        "tokens": [common_prefix(p[0]["tokens"], p[1]["tokens"]) for p in told],
        "of_tokens": [min(len(a["tokens"]) for a in p) for p in told],
    }
    gained: list[list[dict[str, float]]] = []
    for r in answers:
        sums = []
        for k in range(len(children)):
            steps = sum(len(p[k]["accepted"]) for p in r)
            tokens = sum(length + 1 for p in r for length in p[k]["accepted"])
            seconds, wall_s = (sum(p[k][key] for p in r) for key in ("seconds", "wall_s"))
            sums.append({"tau": tokens / steps, "tokens_per_second": tokens / seconds, "with_prompt": tokens / wall_s,
                         "step_ms": 1000 * seconds / steps})  # fmt: skip
        gained.append(sums)
    gflop = children[0].facts["gflop"]
    a_step = TOTAL_TOKEN * gflop["target"] + DEPTH * TOP_K * (gflop["head"] + gflop["lm_head"])
    lengths = " ".join(str(len(ids)) for ids in prompts)
    print(f"EAGLE-2, {TOTAL_TOKEN} tokens verified a step, float32, {threads} thread{'s' * (options.threads > 1)}")
    print(f"prompts of {lengths} tokens, {options.n} new ones; median (min to max) of {options.rounds} rounds:")
    found: dict[str, Any] = {}
    for k, child in enumerate(children):
        figures = found[child.name] = {key: spread([sums[k][key] for sums in gained]) for key in gained[0][k]}
        gflops = figures["gflop_per_second"] = 1000 * a_step / figures["step_ms"]["median"]
        print(
            f"  {child.name:<8} tau {figures['tau']['median']:.3f}; tokens/s {in_words(figures['tokens_per_second'])}, with the "
            f"prompt's run {in_words(figures['with_prompt'])}; ms a step {in_words(figures['step_ms'])}; {gflops:.0f} GFLOP/s, "
            f"{gflops / children[0].facts['fp32_peak']:.0%} of what torch reaches"
        )
    ratios = {key: spread([a[key] / b[key] for a, b in gained]) for key in ("tokens_per_second", "with_prompt", "step_ms")}
    print(f"  ours / authors: tokens/s {in_words(ratios['tokens_per_second'], 2)}, with the prompt's run "
          f"{in_words(ratios['with_prompt'], 2)}")  # fmt: skip
    print(
        f"  the same: {same['trees']} of {same['of_trees']} trees; accept lengths of the first {same['accept_lengths']} of "
        f"{same['of_accept_lengths']} steps; the first {same['tokens']} of {same['of_tokens']} tokens"
    )
    record |= {
        "prompt_tokens": [len(ids) for ids in prompts],
        "engines": {child.name: {**child.facts, "memory_mb": child.memory} for child in children},
        "gflop_a_step": a_step,
        "figures": found,
        "ratio_ours_to_authors": ratios,
        "same": same,
        "accepted": {child.name: [p[k]["accepted"] for p in told] for k, child in enumerate(children)},
        "load_average_after": environment(options.threads)["load_average"],
    }
    write_record(options.out, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="the folder that holds the authors' `eagle` package")
    parser.add_argument("--python", type=Path, help="the interpreter of the environment that it needs")
    parser.add_argument("--engine", default="native", help="HARNESS_ENGINE of ours")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--prompts", type=positive, default=3)
    parser.add_argument("--n", type=positive, default=40, help="new tokens for each prompt")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--out", type=Path, default=Path("authors_speed.json"), help="where the record goes")
    parser.add_argument("--child", choices=("ours", "authors"), help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--head", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "authors":
        serve(lambda: authors(str(options.checkout), options.threads, options.target, options.head))
    elif options.child == "ours":
        serve(lambda: ours(options.threads))
    elif not options.out.resolve().parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    elif options.n < 2:
        parser.error("--n: there is no step to time in fewer than 2 tokens")
    elif options.checkout is None or not (options.checkout / "eagle" / "model" / "ea_model.py").is_file():
        parser.error(f"--checkout: no eagle/model/ea_model.py in {options.checkout}")
    elif options.python is None:
        parser.error("--python: the interpreter of the environment that the authors' code needs")
    else:
        options.checkout = options.checkout.resolve()
        compare(options)


if __name__ == "__main__":
    main()
