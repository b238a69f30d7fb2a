"""Makes models/digits-mosaic: a small LLaMA that continues pictures, its EAGLE head, and the prompts of the task `digits`.

    python scripts/digits_mosaic.py            # on one thread; about 12 minutes of CPU with AMX

A picture is a mosaic of 32 x 32 pixels, 4 x 4 cells, in raster order, a token a pixel. A cell is a digit of scikit-learn's set
(8 x 8 pixels of 17 levels), blank, plain (one grey) or noisy. The model is given the first row of cells and goes on. The head
learns the target's own answers, by the trainer that trains all others. All is seeded: a second run on the same machine and torch
version gives the same files. What is there already is not made again: to remake a part, delete its folder. The target's training
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from harness.common.pypi import WheelMember, wheel_member  # noqa: E402
from harness.train.data import Conversation  # noqa: E402
from harness.train.generate import answers  # noqa: E402
from harness.train.held_out import calibration  # noqa: E402
from harness.train.loop import train  # noqa: E402
from harness.train.save import save_drafter  # noqa: E402
from harness.train.settings import TrainSettings  # noqa: E402
from harness.train.trainers import EAGLE  # noqa: E402

# this wheel is for CPython 3.11 on x86-64 Linux; elsewhere `--digits` names the file out of any other wheel
WHEEL = WheelMember(
    "scikit-learn==1.9.1",
    "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    "sklearn/datasets/data/digits.csv.gz",
)
DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"

LEVELS, CELL, CELLS = 17, 8, 4
SIDE = CELL * CELLS
SPECIAL = ["<pad>", "<bos>", "<eos>"]  # ids 0, 1, 2
PAD, BOS, EOS = range(3)
VOCAB = len(SPECIAL) + LEVELS
PROMPT = 1 + CELL * SIDE  # tokens: BOS and the first row of cells
WHOLE = 1 + SIDE * SIDE + 1  # BOS, the picture, EOS
CONTEXT = 1280  # the picture's 1,026 tokens and the largest trees behind them

KINDS = ("digit", "blank", "plain", "noisy")
OF_KINDS = (0.45, 0.2, 0.15, 0.2)
AS_ABOVE = 0.75  # of the cells, those of the kind (and grey, or class of digit) of the cell above
HELD_ONE_IN = 5  # images

# Of the rotary wavelengths 2 pi theta^(2i/48) one is 32.0 tokens, a row of pixels; others are 7.9, 15.9 and 260: near a cell's
# width, two cells and a row of cells. With a theta of 10,000 a column is no period of anything.
THETA, HEAD_DIM = 265.4, 48
HIDDEN, HEADS, KV_HEADS, LAYERS, MLP = 192, 4, 2, 3, 512
STEPS, ROWS, RATE = 800, 4, 4e-3
N_ANSWERS, HELD_ANSWERS, SLOTS = 288, 32, 64
HEAD = TrainSettings(
    tokens=1_200_000, batch_tokens=4400, learning_rate=2e-3, warmup_steps=50, betas=(0.9, 0.98), unroll=3, unroll_from=0.5,
    frequent_rows=VOCAB, held_out=HELD_ANSWERS, max_length=WHOLE,
)  # fmt: skip
PROMPTS = 80

YAML = """\
# A small LLaMA that continues pictures, made by scripts/digits_mosaic.py: docs/digits.md. It reads and writes pixels, no text.
name: digits-mosaic
title: LLaMA of {millions:.1f} M parameters over 32 x 32 mosaics of digits
weights: {{path: digits-mosaic, sha256: {sha256}}}
licence: Apache-2.0
head: heads/digits-mosaic
template: plain
context_length: {context}
stop_ids: [{eos}]
limit: 20
max_new_tokens: {answer}
presets:
  paper: {{top_k: 10, depth: 6, total: 59}} # the paper's setting for its smallest targets (7B, 8B)
"""


class Images:
    """Digits of one side of the split: `pixels` [n, 8, 8] and their classes `labels` [n]."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels = pixels
        self.of_class = [np.flatnonzero(labels == c) for c in range(10)]


def read_digits(file: Path) -> tuple[Images, Images]:
    """scikit-learn's digits.csv.gz -> (training images, held-out images), disjoint."""
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != DIGITS_SHA256:
        raise SystemExit(f"{file} has sha256 {found}, expected {DIGITS_SHA256}: it is another set of digits")
    rows = np.loadtxt(gzip.open(file), delimiter=",", dtype=np.int64)
    pixels, labels = rows[:, :-1].reshape(-1, CELL, CELL), rows[:, -1]
    held = np.random.default_rng(0).permutation(len(rows)) % HELD_ONE_IN == 0
    return Images(pixels[~held], labels[~held]), Images(pixels[held], labels[held])


def mosaic(rng: np.random.Generator, images: Images) -> tuple[np.ndarray, np.ndarray]:
    """One picture [32, 32] of levels, and the kind of each cell [4, 4] as an index of `KINDS`."""
    picture, kinds = np.zeros((SIDE, SIDE), dtype=np.int64), np.zeros((CELLS, CELLS), dtype=np.int64)
    which = np.zeros((CELLS, CELLS), dtype=np.int64)  # the class of a digit, the grey of a plain cell
    for r in range(CELLS):
        for c in range(CELLS):
            if r and rng.random() < AS_ABOVE:
                kinds[r, c], which[r, c] = kinds[r - 1, c], which[r - 1, c]
            else:
                kinds[r, c] = rng.choice(len(KINDS), p=OF_KINDS)
                which[r, c] = rng.integers(10) if kinds[r, c] == 0 else rng.integers(1, LEVELS)
            place = picture[r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL]
            if KINDS[kinds[r, c]] == "digit":
                place[:] = images.pixels[rng.choice(images.of_class[which[r, c]])]
            elif KINDS[kinds[r, c]] == "plain":
                place[:] = which[r, c]
            elif KINDS[kinds[r, c]] == "noisy":
                place[:] = noise(rng)
    return picture, kinds


def noise(rng: np.random.Generator) -> np.ndarray:
    """A noisy cell [8, 8]: each level is any but those to its left and above, so that it never looks like a plain one."""
    cell = np.full((CELL + 1, CELL + 1), -1)
    for y in range(1, CELL + 1):
        for x in range(1, CELL + 1):
            allowed = [level for level in range(LEVELS) if level not in (cell[y - 1, x], cell[y, x - 1])]
            cell[y, x] = allowed[rng.integers(len(allowed))]
    return cell[1:, 1:]


def ids_of(picture: np.ndarray) -> np.ndarray:
    """Token ids of a whole picture."""
    return np.concatenate([[BOS], picture.reshape(-1) + len(SPECIAL), [EOS]])


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word a level, "0" to "16", and no word for anything else: other texts are refused."""
    words = {word: i for i, word in enumerate([*SPECIAL, *map(str, range(LEVELS))])}
    made = Tokenizer(models.WordLevel(words))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[BOS]} $A", special_tokens=[(SPECIAL[BOS], BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=SPECIAL[PAD], bos_token=SPECIAL[BOS], eos_token=SPECIAL[EOS], model_max_length=CONTEXT
    )


def pictures(images: Images, *seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mosaics without end; `seed` keeps the parts of the data apart."""
    rng = np.random.default_rng([2406, *seed])
    while True:
        yield mosaic(rng, images)


TRAINING, JUDGED, ANSWERED, ASKED = range(4)  # seeds: the target's training, its losses, the head's answers, the task's prompts


def batch(source: Iterator[tuple[np.ndarray, np.ndarray]], rows: int) -> tuple[Tensor, Tensor]:
    """(token ids [rows, 1026], the kind of every pixel [rows, 1024])."""
    made = [next(source) for _ in range(rows)]
    kinds = [np.kron(kinds, np.ones((CELL, CELL), dtype=np.int64)).reshape(-1) for _, kinds in made]
    return torch.from_numpy(np.stack([ids_of(picture) for picture, _ in made])), torch.from_numpy(np.stack(kinds))


def losses(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """The cross-entropy of every token but the first [rows, n - 1], in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids[:, :-1]).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


def make_target(folder: Path, train_on: Images, judge_on: Images) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, rope_theta=THETA,
        tie_word_embeddings=False, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    ))  # fmt: skip
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("model.layers")]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    checkpoint, first, seconds = folder.with_suffix(".checkpoint.pt"), 0, 0.0
    if checkpoint.exists():
        kept = torch.load(checkpoint)
        model.load_state_dict(kept["model"])
        for optimizer, state in zip(optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first, seconds = kept["step"], kept["seconds"]
    began = time.thread_time() - seconds
    for step in range(first, STEPS):
        rate = RATE * min(1.0, (step + 1) / 50) * min(1.0, 2 * (1 - step / STEPS))  # falls in the second half
        loss = losses(model, batch(pictures(train_on, TRAINING, step), ROWS)[0]).mean()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if step % 50 == 49:
            seconds = time.thread_time() - began
            print(f"target: step {step + 1} of {STEPS}, loss {loss.item():.3f}, {seconds:.0f} s of CPU", flush=True)
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step + 1,
                        "seconds": seconds}, checkpoint)  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    checkpoint.unlink(missing_ok=True)
    made = {
        "made_by": "scripts/digits_mosaic.py", "parameters": sum(p.numel() for p in model.parameters()), "steps": STEPS,
        "pictures": STEPS * ROWS, "cpu_seconds": round(time.thread_time() - began),
        "nats_a_pixel": judged(model, train_on, judge_on, 64),
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(made, indent=2) + "\n")


@torch.no_grad()
def judged(model: LlamaForCausalLM, known: Images, held: Images, n: int) -> dict[str, dict[str, float]]:
    """Nats a pixel of held-out mosaics after their first row of cells, by kind of cell: the model's, and of a table of levels by
    kind and place in a cell, counted on training mosaics."""
    counts = np.ones((len(KINDS), CELL, CELL, LEVELS))
    source = pictures(known, TRAINING)
    for picture, kinds in (next(source) for _ in range(400)):
        y, x = np.indices(picture.shape)
        np.add.at(counts, (kinds[y // CELL, x // CELL], y % CELL, x % CELL, picture), 1)
    table = -np.log(counts / counts.sum(-1, keepdims=True))
    source, ours, theirs = pictures(held, JUDGED), [[] for _ in KINDS], [[] for _ in KINDS]
    for _ in range(n // 4):
        ids, kinds = batch(source, 4)
        found, place = losses(model, ids)[:, : SIDE * SIDE].numpy(), np.arange(SIDE * SIDE)
        asked = np.broadcast_to(place >= PROMPT - 1, kinds.shape)
        by_table = table[kinds.numpy(), place // SIDE % CELL, place % CELL, ids[:, 1:-1].numpy() - len(SPECIAL)]
        for k in range(len(KINDS)):
            here = asked & (kinds.numpy() == k)
            ours[k].append(found[here])
            theirs[k].append(by_table[here])
    return {
        kind: {"model": round(float(np.concatenate(a).mean()), 3), "table": round(float(np.concatenate(b).mean()), 3)}
        for kind, a, b in zip(KINDS, ours, theirs, strict=True)
    }


def make_head(folder: Path, target: Path, train_on: Images, target_sha256: str) -> None:
    """Train a head on the target's own answers, as `harness train eagle` does."""
    model: Any = LlamaForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()
    source, began = pictures(train_on, ANSWERED), time.thread_time()
    prompts = [ids_of(next(source)[0])[:PROMPT].tolist() for _ in range(N_ANSWERS)]
    made = sorted(
        answers(model, prompts, stop_ids={EOS}, max_new_tokens=WHOLE - PROMPT, n_slots=SLOTS, seed=0, stop_loops=False),
        key=lambda a: a.index,
    )
    answered = time.thread_time() - began
    print(f"head: {sum(len(a.ids) - a.n_prompt for a in made):,} tokens of answers, {answered:.0f} s of CPU", flush=True)
    conversations = [Conversation(a.ids, a.features, a.n_prompt, a.greedy) for a in made]
    pool, held = conversations[HELD_ANSWERS:], conversations[:HELD_ANSWERS]
    torch.manual_seed(0)
    head = EAGLE.new(model.config, HEAD)
    embedding, lm_head = model.model.embed_tokens.weight.detach(), model.lm_head.weight.detach()
    with tempfile.TemporaryDirectory() as scratch:
        curve = train(EAGLE, head, embedding, lm_head, pool, held, HEAD, Path(scratch), say=partial(print, "head:", flush=True))
    save_drafter(
        EAGLE, head, folder, target_sha256, curve,
        {
            "made_by": "scripts/digits_mosaic.py", "answers": len(pool), "held_out": len(held),
            "answer_tokens": sum(len(c.ids) - c.n_prompt for c in pool), "answering_cpu_seconds": round(answered),
            "tokens": HEAD.tokens, "unroll": HEAD.unroll,
            "parameters": sum(p.numel() for p in head.parameters()),
        },
        calibrated=calibration(EAGLE, head, embedding, lm_head, held),
    )  # fmt: skip
    (folder / "model.safetensors").chmod(0o644)


def make_prompts(file: Path, images: Images) -> None:
    """The first row of cells of held-out mosaics, a line of text a row of pixels."""
    source = pictures(images, ASKED)
    rows = []
    for number in range(1, PROMPTS + 1):
        picture, _ = next(source)
        text = "\n".join(" ".join(map(str, row)) for row in picture[:CELL])
        rows.append({"question_id": f"mosaic-{number}", "turns": [text]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=Path, help="scikit-learn's digits.csv.gz (default: out of its wheel on PyPI)")
    parser.add_argument("--out", type=Path, default=ROOT, help="a folder that gets models/ and tasks/ (default: the repository)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train_on, held = read_digits(asked.digits or wheel_member(WHEEL))
    folder = asked.out / "models"
    target, head = folder / "digits-mosaic", folder / "heads" / "digits-mosaic"
    questions = asked.out / "tasks" / "bundled" / "digits.jsonl"
    for parent in (folder, questions.parent):
        parent.mkdir(parents=True, exist_ok=True)
    if not questions.exists():
        make_prompts(questions, held)
    if not (target / "model.safetensors").exists():
        make_target(target, train_on, held)
    weights = target / "model.safetensors"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    millions = json.loads((target / "training.json").read_text())["parameters"] / 1e6
    text = YAML.format(millions=millions, sha256=sha256, context=CONTEXT, eos=EOS, answer=WHOLE - PROMPT)
    (folder / "digits-mosaic.yaml").write_text(text)
    if not (head / "model.safetensors").exists():
        make_head(head, target, train_on, sha256)


if __name__ == "__main__":
    main()
