"""Makes tests/tiny: a tiny LLaMA target with a trained EAGLE head, so that acceptance in tests is real.

    python tests/make_tiny.py [DIR]

The target (two layers, hidden size 64, grouped heads) learns the texts of tasks/bundled by heart in a minute or so; the
head and the other drafters (Medusa, Hydra, a narrow draft LM, an EAGLE-3 head) then learn to draft the target's own answers, with
the trainer that trains all others. All are seeded: a second run on the same machine, torch version and single thread gives the
same files. What is there already is not made again: to remake a part, delete its folder.

What is committed is what this makes, but for the head. That one is of the trainer of 22 November (commit d470021), which began
its weights elsewhere and had other answers: top-1 is 0.46, and 0.60 today. It stays: figures of tests/audit rest on its drafts.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from harness.load.eagle_head import FREQUENT  # noqa: E402
from harness.train.data import Conversation, frequent_tokens  # noqa: E402
from harness.train.generate import answers, bits_of, features_of  # noqa: E402
from harness.train.loop import train  # noqa: E402
from harness.train.save import save_drafter  # noqa: E402
from harness.train.settings import TrainSettings  # noqa: E402
from harness.train.trainers import EAGLE, TRAINERS  # noqa: E402
from methods.engine.draft_head import EagleHead, HeadConfig  # noqa: E402

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
STOP_IDS = [0, 2]
VOCAB = 384
CONTEXT = 2560  # the longest bundled article is 2,028 tokens long
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEAD = TrainSettings(
    tokens=700_000, batch_tokens=2048, learning_rate=4e-3, warmup_steps=30, unroll=3, frequent_rows=VOCAB,
    held_out=32, max_length=512, betas=(0.9, 0.95), cooldown=0.25, unroll_from=0.6,
)  # fmt: skip
OTHERS = {
    "medusa": replace(TRAINERS["medusa"].defaults, tokens=500_000),
    "hydra": replace(TRAINERS["hydra"].defaults, tokens=500_000),
    "sps": replace(TRAINERS["sps"].defaults, tokens=700_000, width=32, layers=1),
    "eagle3": replace(TRAINERS["eagle3"].defaults, tokens=500_000, draft_vocab=256, aux_layers=(0, 1, 2), intermediate_size=96),
}
YAML = """\
# A target of {params:,} parameters for tests; made by tests/make_tiny.py.
name: tiny
title: tiny LLaMA, trained on the bundled prompts
weights: {{path: target, sha256: {sha256}}}
licence: Apache-2.0
head: head
drafters: {{medusa: medusa, hydra: hydra, lm: sps, eagle3: eagle3}}
context_length: {context}
stop_ids: {stop_ids}
limit: 2
max_new_tokens: 64
presets:
  paper: {{top_k: 10, depth: 6, total: 59}}
"""


def exchanges() -> list[tuple[str, str]]:
    """(user turn, answer) pairs out of the bundled questions: their references, else text of ours that follows on."""
    pairs: list[tuple[str, str]] = []
    paragraphs: list[str] = []
    open_turns: list[str] = []
    for file in sorted((ROOT / "tasks" / "bundled").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "category" not in row:  # pictures in numbers, which are a task of another model
                continue
            parts = [p for p in row["turns"][0].split("\n\n") if p.strip()]
            if row["category"] == "summarization":
                pairs += list(zip(parts, parts[1:], strict=False))
                paragraphs += parts[1:]
            elif row.get("reference"):
                pairs.append((row["turns"][0], row["reference"][0]))
            else:
                open_turns += row["turns"]
    return pairs + [(turn, paragraphs[i % len(paragraphs)]) for i, turn in enumerate(open_turns)]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=TEMPLATE, model_max_length=CONTEXT
    )


def encode_chat(tokenizer: Any, user: str, answer: str | None = None) -> list[int]:
    """Token ids of a prompt, or of a whole exchange where an answer is given."""
    turns = [{"role": "user", "content": user}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def train_target(model: LlamaForCausalLM, chats: list[list[int]], steps: int, rows: int = 12, length: int = 320) -> None:
    """Next-token training on the exchanges laid end to end in a new order every epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 40) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    rng, stream = random.Random(0), []
    began = time.monotonic()
    for step in range(steps):
        while len(stream) < rows * length:
            rng.shuffle(chats)
            stream += [token for chat in chats for token in chat]
        batch, stream = torch.tensor(stream[: rows * length]).view(rows, length), stream[rows * length :]
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"target: step {step + 1} of {steps}, loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)


def make(folder: Path, target_steps: int = 420) -> None:
    pairs, target = exchanges(), folder / "target"
    if not (target / "model.safetensors").exists():
        make_target(target, pairs, target_steps)
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    model, tokenizer = LlamaForCausalLM.from_pretrained(target).eval(), PreTrainedTokenizerFast.from_pretrained(target)
    # every weight is a bfloat16 number: float32 and float64 loads are the same model
    n_params = sum(p.numel() for p in model.parameters())
    yaml = YAML.format(params=n_params, sha256=digest, context=CONTEXT, stop_ids=STOP_IDS)
    (folder / "tiny.yaml").write_text(yaml, encoding="utf-8")
    if all((folder / name).exists() for name in ("head", *OTHERS)):
        return
    made = training_answers(model, [encode_chat(tokenizer, user) for user, _ in pairs])
    if not (folder / "head").exists():
        make_head(folder / "head", model, digest, made)
    for name, settings in OTHERS.items():
        if not (folder / name).exists():
            make_drafter(name, folder / name, model, digest, made, settings)


def make_target(folder: Path, pairs: list[tuple[str, str]], steps: int) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer([text for pair in pairs for text in pair])
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    train_target(model, [encode_chat(tokenizer, *pair) for pair in pairs], steps)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def training_answers(model: LlamaForCausalLM, prompts: list[list[int]]) -> list[Conversation]:
    """The target's own answers, greedy and sampled."""
    prompts = [p for p in prompts if len(p) <= 400] * 2
    began = time.monotonic()
    made = sorted(answers(model, prompts, stop_ids=set(STOP_IDS), max_new_tokens=96, n_slots=64, seed=0), key=lambda a: a.index)
    print(f"{sum(len(a.ids) for a in made):,} tokens of answers, {time.monotonic() - began:.0f} s", flush=True)
    return [Conversation(a.ids, a.features, a.n_prompt) for a in made]


def with_states(made: list[Conversation], model: LlamaForCausalLM, aux_layers: tuple[int, ...]) -> list[Conversation]:
    """The same with those hidden states of the target, if any are named."""
    if not aux_layers:
        return made
    hidden, states = model.config.hidden_size, features_of(model, aux_layers)([c.ids for c in made])
    return [replace(c, aux=bits_of(x[:, hidden:])) for c, x in zip(made, states, strict=True)]


def make_drafter(
    name: str, folder: Path, model: LlamaForCausalLM, target_sha256: str, made: list[Conversation], settings: TrainSettings
) -> None:
    """Train a drafter as `harness train` does, and save it as that does, without figures."""
    settings = replace(settings, batch_tokens=HEAD.batch_tokens, learning_rate=HEAD.learning_rate, warmup_steps=HEAD.warmup_steps,
                       betas=HEAD.betas, cooldown=HEAD.cooldown, frequent_rows=VOCAB, held_out=HEAD.held_out,
                       max_length=HEAD.max_length)  # fmt: skip
    torch.manual_seed(0)
    trainer = TRAINERS[name]
    drafter = trainer.new(model.config, settings)
    embedding, lm_head = tables(model)
    pool, held = hold_out(with_states(made, model, trainer.aux_layers(drafter)), settings)
    with tempfile.TemporaryDirectory() as scratch:
        said = partial(print, f"{name}:", flush=True)
        curve = train(trainer, drafter, embedding, lm_head, pool, held, settings, Path(scratch), say=said)
    figures = trainer.figures(drafter, embedding, lm_head, held)
    save_drafter(trainer, drafter, folder, target_sha256, curve, {"made_by": "tests/make_tiny.py"}, figures=figures)
    (folder / "model.safetensors").chmod(0o644)
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):  # what tests need, and no more: this is in the repository
            file.unlink()


def hold_out(answers: list[Conversation], settings: TrainSettings) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held-out) answers, seeded."""
    chosen = np.random.default_rng(settings.seed).permutation(len(answers))[: settings.held_out].tolist()
    return [c for i, c in enumerate(answers) if i not in chosen], [answers[i] for i in chosen]


def tables(model: LlamaForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    weights = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return weights[0].detach().to(torch.bfloat16), weights[1].detach().to(torch.bfloat16)


def make_head(folder: Path, model: LlamaForCausalLM, target_sha256: str, made: list[Conversation]) -> None:
    """Train a head on the target's own answers and save it in the official layout."""
    c = model.config
    shape = {
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": 10000.0,
        "vocab_size": c.vocab_size,
        "bias": True,
    }
    head = EagleHead(HeadConfig(**shape))
    embedding, lm_head = tables(model)
    pool, held = hold_out(made, HEAD)
    with tempfile.TemporaryDirectory() as scratch:
        curve = train(
            EAGLE, head, embedding, lm_head, pool, held, HEAD, Path(scratch), say=lambda text: print("head:", text, flush=True)
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.to(torch.bfloat16).contiguous() for name, p in EAGLE.shipped(head).state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"tokens": torch.from_numpy(frequent_tokens(pool + held, c.vocab_size))}, folder / FREQUENT)
    (folder / FREQUENT).chmod(0o644)
    (folder / "model.safetensors").chmod(0o644)
    values = shape | {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "target_sha256": target_sha256,
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "made_by": "tests/make_tiny.py",
        "held_out": {k: curve[-1][k] for k in ("top1", "top10", "chain_tau")},
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tiny")
