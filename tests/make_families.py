"""Makes tiny checkpoints in the file layouts of the paper's three families: random weights, everything else true to kind.

    python tests/make_families.py DIR

vicuna: pickled shards with an index (its repositories have no safetensors), rotary tables among the weights, a LLaMA tokenizer
whose settings say nothing of `legacy`; head pickled in float32 with bias and a copy of the embedding.
llama2: safetensors shards with an index, the same kind of tokenizer, `legacy: false`; head pickled in float16.
llama3: safetensors shards, grouped heads, a byte-level BPE with the special tokens behind it and the chat template in its
settings; head in safetensors, without bias.

The YAMLs are those of models/, with the sizes, stop ids and places changed: template, system prompt, dtype and presets stay.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from harness.load.config import MODELS  # noqa: E402
from methods.engine.draft_head import EagleHead, HeadConfig  # noqa: E402

YAMLS = {"vicuna": "vicuna-7b", "llama2": "llama2-chat-7b", "llama3": "llama3-instruct-8b"}
HIDDEN, INTERMEDIATE, LAYERS, HEADS = 32, 48, 3, 4
KV_HEADS = {"vicuna": 4, "llama2": 4, "llama3": 2}
LLAMA3_SPECIAL = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
                  "reserved_special_token_2", "reserved_special_token_3", "start_header_id", "end_header_id",
                  "reserved_special_token_4", "eot_id"]  # fmt: skip
LLAMA3_TEMPLATE = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def texts() -> list[str]:
    """Something to learn merges from: the bundled GSM8K questions."""
    rows = (ROOT / "tasks" / "bundled" / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["turns"][0] for row in rows]


def sentencepiece_like() -> Tokenizer:
    """A BPE over words that begin with U+2581, whose rare characters fall back to bytes; no merge crosses a word."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=special, limit_alphabet=50, show_progress=False)
    learned.train_from_iterator(texts(), trainer)
    model = json.loads(learned.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(special[:3])
    return made


def tiktoken_like() -> Tokenizer:
    """A byte-level BPE, special tokens after its vocabulary, BOS put in front of what it is given."""
    made = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([f"<|{name}|>" for name in LLAMA3_SPECIAL])
    bos = f"<|{LLAMA3_SPECIAL[0]}|>"
    made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))])
    return made


def tokenizer_settings(family: str) -> dict[str, Any]:
    if family == "llama3":
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        return names | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA3_TEMPLATE, "model_max_length": 8192}
    said = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False,
            "tokenizer_class": "LlamaTokenizer", "clean_up_tokenization_spaces": False}  # fmt: skip
    return said | ({"legacy": False} if family == "llama2" else {})


def config_json(family: str, vocab: int) -> dict[str, Any]:
    """In the layout of the time: `torch_dtype`, `rope_theta` and, before heads were grouped, no `num_key_value_heads`."""
    values = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.28.1", "use_cache": True, "vocab_size": vocab,
    }  # fmt: skip
    if family == "llama3":
        values |= {"num_key_value_heads": KV_HEADS[family], "rope_theta": 500000.0, "rope_scaling": None}
    return values


def save_shards(state: dict[str, Tensor], folder: Path, stem: str, save: Any, n: int = 3) -> None:
    """`stem` is `model.safetensors` or `pytorch_model.bin`; the index beside the shards says what is where."""
    name, suffix = stem.split(".")
    keys = list(state)
    parts = [keys[i * len(keys) // n : (i + 1) * len(keys) // n] for i in range(n)]
    weight_map = {}
    for i, part in enumerate(parts, start=1):
        file = f"{name}-{i:05d}-of-{n:05d}.{suffix}"
        save({key: state[key].contiguous() for key in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.numel() * t.element_size() for t in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / f"{stem}.index.json").write_text(json.dumps(index, indent=1))


def make_target(folder: Path, family: str) -> dict[str, Tensor]:
    folder.mkdir(parents=True)
    tokenizer = tiktoken_like() if family == "llama3" else sentencepiece_like()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings(family), indent=1))
    values = config_json(family, tokenizer.get_vocab_size())
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in values.items() if k not in ("torch_dtype", "transformers_version")}))
    state = {k: v.detach().half() for k, v in model.state_dict().items()}
    state["model.embed_tokens.weight"] *= 50  # of size one, as trained ones are: texts then differ token by token
    if family == "vicuna":
        table = 10000.0 ** -(torch.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
        state |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": table for i in range(LAYERS)}
        save_shards(state, folder, "pytorch_model.bin", torch.save)
    else:
        save_shards(state, folder, "model.safetensors", lambda s, file: save_file(s, file, {"format": "pt"}))
    return state


def make_head(folder: Path, family: str, target: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    embedding = target["model.embed_tokens.weight"]
    values = config_json(family, len(embedding)) | {"num_hidden_layers": 1} | ({"bias": False} if family == "llama3" else {})
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    has_bias, theta = family != "llama3", values.get("rope_theta", 10000.0)
    config = HeadConfig(HIDDEN, INTERMEDIATE, HEADS, KV_HEADS[family], 1e-6, theta, len(embedding), has_bias)
    state = {"embed_tokens.weight": embedding} | {k: v.detach() for k, v in EagleHead(config).state_dict().items()}
    if family == "llama3":
        save_file({k: v.half().contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    else:
        dtype = torch.float32 if family == "vicuna" else torch.float16
        torch.save({k: v.to(dtype) for k, v in state.items()}, folder / "pytorch_model.bin")


def make(folder: Path, family: str) -> Path:
    """-> the YAML of a tiny member of `family`, its target and head beside it."""
    torch.manual_seed(0)
    make_head(folder / "head", family, target := make_target(folder / "target", family))
    values = yaml.safe_load((MODELS / f"{YAMLS[family]}.yaml").read_text(encoding="utf-8"))
    vocab = len(target["model.embed_tokens.weight"])
    first = vocab - len(LLAMA3_SPECIAL)
    values |= {
        "name": f"tiny-{family}", "title": f"random weights in the layout of {values['title']}", "weights": {"path": "target"},
        "head": "head", "context_length": 2048, "stop_ids": [first + 1, first + 9] if family == "llama3" else [2],
    }  # fmt: skip
    for key in (
        "architecture",
        "drafters",
        "paper",
        "packages",
    ):  # the tokenizer is a tokenizer.json: nothing else is needed to read it
        values.pop(key, None)
    path = folder / f"tiny-{family}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in YAMLS:
        print(make(Path(sys.argv[1]) / name, name))
