"""What `gpu_check.sh` runs: each part is a process of its own with a time limit, and leaves a JSON file.

The parts, what is worth most first:

1. tiny: every method on the tiny model of the tests in float32, launched call by call and as graphs: all outputs vanilla's. Then
   on the row-invariant engine in both half precisions: outputs vanilla's, and no operator whose rows depend on one another.
2. costs of vicuna-7b, llama3-instruct-8b and vicuna-13b, random weights: as graphs, call by call, on transformers' module.
3. predict: what the paper's tau would give with these costs.
4. train: 200 steps of a draft head for the tiny model.
5. embedded: EAGLE-2 and vanilla on the embedded target, where its weights are in the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests/tiny/tiny.yaml"
LEAST_S = 20  # a part is not begun with less time left
ROW_INVARIANT = "row-invariant"
REFUSED = "no CUDA graphs"  # what is said on stderr where a driver refuses one
MODELS = ("vicuna-7b", "llama3-instruct-8b", "vicuna-13b")


@dataclass(frozen=True, slots=True)
class Part:
    """A command of the harness. `engine`: HARNESS_ENGINE; `most_s`: seconds that it may take."""

    name: str
    words: tuple[str, ...]
    engine: str
    most_s: float


def parts(out: Path, on_cpu: bool) -> Iterator[Part]:
    """All parts in order. On a CPU, where this is a rehearsal, sizes are cut to what a minute can do."""
    engines = ("static", "torch", "module")
    few = ("--limit", "1", "--max-new-tokens", "8" if on_cpu else "32")
    for engine in engines[:2]:
        for temperature in ("0", "1"):
            words = ("run", "--model", str(TINY), "--method", "all", "--task", "all", "--source", "bundled", *few, "--dtype",
                     "float32", "--temperature", temperature, "--out", str(out / f"tiny-{engine}"), "--json")  # fmt: skip
            yield Part(f"tiny, {engine}, T = {temperature}", words, engine, 60)
    for dtype in ("float16", "bfloat16"):
        there = ("--dtype", dtype, "--out", str(out / "tiny-row-invariant"), "--json")
        task = "gsm8k" if on_cpu else "all"
        words = ("run", "--model", str(TINY), "--method", "all", "--task", task, "--source", "bundled", *few, *there)
        yield Part(f"tiny, row-invariant, {dtype}", words, ROW_INVARIANT, 60)
        looked_at = ("--engine", ROW_INVARIANT, "--rows", "1,5") if on_cpu else ("--rows", "1,8,60")
        words = ("localise", "--model", str(TINY), *looked_at, "--dtype", dtype, "--json")
        yield Part(f"tiny, localise, {dtype}", words, ROW_INVARIANT, 60)
    for model in MODELS[:1] if on_cpu else MODELS:
        for engine in engines:
            cut = ("--context", "512", "--rounds", "5")
            if on_cpu:  # making Medusa's heads takes a CPU longer than all else
                cut = ("--layers", "2", "--context", "32", "--rounds", "1", "--drafter", "none")
            words = ("costs", "--model", model, "--random-weights", *cut, "--dtype", "bfloat16" if on_cpu else "float16", "--out",
                     str(out / "costs" / engine), "--json")  # fmt: skip
            yield Part(f"costs, {model}, {engine}", words, engine, 300 if on_cpu else 120)
    yield Part("predict", ("predict", "--costs", str(out / "costs"), "--out", str(out / "predicted"), "--json"), "", 30)
    train = ("train", "eagle", "--model", str(TINY), "--work", str(out / "work"), "--out", str(out / "head"), "--answer-tokens",
             "2000", "--max-new-tokens", "64", "--text-tokens", "0", "--tokens", "20000")  # fmt: skip
    yield Part("train", train, "torch" if on_cpu else "", 90)
    for engine in engines[:2]:
        there = ("--out", str(out / f"embedded-{engine}"), "--json")
        words = ("run", "--method", "eagle2", "--task", "gsm8k", "--source", "bundled", *few, *there)
        yield Part(f"embedded, {engine}", words, engine, 60)


def run(part: Part, on_cpu: bool, seconds: float) -> dict[str, object]:
    """Run a part for at most so many seconds; -> what came of it."""
    environment = {k: v for k, v in os.environ.items() if k != "HARNESS_ENGINE"}
    environment |= {"HARNESS_ENGINE": part.engine} if part.engine else {}
    if on_cpu:
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "harness", *part.words], env=environment, capture_output=True, text=True, timeout=seconds
        )
        code: int | None = done.returncode
        out, err = done.stdout, done.stderr
    except subprocess.TimeoutExpired as e:
        code, out, err = None, (e.stdout or b"").decode(errors="replace"), (e.stderr or b"").decode(errors="replace")
    value = None
    if "--json" in part.words and code is not None and out.strip():
        try:
            value = json.loads(out.splitlines()[-1])
        except ValueError:
            pass
    return {"part": part.name, "engine": part.engine, "command": " ".join(part.words), "exit": code,
            "seconds": round(time.monotonic() - began, 1), "result": value, "refused": REFUSED in err,
            "stderr": err[-2000:]}  # fmt: skip


def faults(part: Part, result: object) -> dict[str, object]:
    """What is wrong with the result of a part on the tiny model, by what to call it; nothing else is judged here."""
    if not part.name.startswith("tiny, "):
        return {}
    if part.words[0] == "localise":
        engines = result["engines"] if isinstance(result, dict) else []
        changed = [e["finding"] for e in engines if e["engine"] == ROW_INVARIANT and not keeps_bits(e)]
        return {"changes bits": changed} if changed or not engines else {}
    cells = result if isinstance(result, list) else [result] if isinstance(result, dict) else []
    # at T = 1 and for what no vanilla stands beside there is nothing to compare; others' loops run on another forward, which in
    # half precision rounds in its own way
    wrong = [
        c for c in cells if c.get("identical") is not None and c["identical"] != c["prompts"]
        and not (part.engine == ROW_INVARIANT and methods.is_external(c["method"]))
    ]  # fmt: skip
    return {"not vanilla's": wrong} if wrong else {}


def keeps_bits(engine: dict[str, Any]) -> bool:
    """Whether `harness localise` found no difference on an engine, and compared all."""
    return not (engine["operators"] or engine["left_out"] or any(s["differing"] for s in engine["settings"]))


def brief(result: object) -> object:
    """What is kept of a result: of `harness localise` a sentence for each engine."""
    if isinstance(result, dict) and "engines" in result:
        return {e["engine"]: e["finding"] for e in result["engines"]}
    return result


def ended(made: Mapping[str, object]) -> str:
    """How a part ended, the worst first: that its graphs were refused is said only of one that is right."""
    if made.get("is right") is False:
        return "differs"
    if made["exit"] != 0:
        return f"exit {made['exit']}"
    return "no graphs" if "graphs" in made else "ok"


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=None, help="in all (default: 8; 20 on a CPU)")
    given = parser.parse_args()
    minutes = given.minutes if given.minutes is not None else 20.0 if given.device == "cpu" else 8.0
    import torch

    on_cpu = given.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        print("no CUDA device is seen here; `--device cpu` rehearses on the CPU", file=sys.stderr)
        return 2
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    name = "CPU" if on_cpu else torch.cuda.get_device_name()
    ends, found, failed = time.monotonic() + 60 * minutes, list[dict[str, object]](), 0
    for part in parts(out, on_cpu):
        left = ends - time.monotonic()
        if left < LEAST_S:
            made: dict[str, object] = {"part": part.name, "engine": part.engine, "exit": None, "stderr": "no time was left"}
            failed += 1
        else:
            print(f"{part.name} ...", file=sys.stderr, flush=True)
            made = run(part, on_cpu, min(part.most_s, left))
            wrong = faults(part, made["result"])
            made |= {"result": brief(made["result"]), "is right": not wrong, **wrong}
            if made.pop("refused"):  # the part is as good, but it is not of graphs
                made["graphs"] = "refused"
            failed += made["exit"] != 0 or bool(wrong) or "graphs" in made
        found.append(made)
        whole = {"device": name, "torch": torch.__version__, "minutes": minutes, "parts": found}
        file = out / "summary.json"
        file.with_suffix(".tmp").write_text(json.dumps(whole, indent=1) + "\n")
        file.with_suffix(".tmp").replace(file)
    for made in found:
        print(f"{ended(made):9} {made.get('seconds', 0):6} s  {made['part']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
