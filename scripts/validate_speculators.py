"""Two halves of scripts/validate_speculators.sh: heads are written in our environment, and checked in one of speculators' own.

The check of each head:
- speculators' pydantic model reads its config.json, and every value in it comes back from the model as it was written;
- its tensors are those of speculators' module: none is unexpected, and those missing are the target's;
- the module's logits after a text, and after one drafted token more, are those of the formula (tests/eagle3_formula.py).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import torch

TOLERANCE = 1e-4  # the modules compute in float32
OF_THE_TARGET = {"embed_tokens.weight", "verifier_lm_head.weight", "verifier_norm.weight"}
N = 7  # tokens of the text
READ_OTHERWISE = ("dtype", "transformer_layer_config.rope_theta")  # as a torch.dtype; as a part of rope_parameters


def write(folder: Path) -> None:
    """Export small heads of every sort that the format holds."""
    from published_heads import folder_of, speculators_samples

    for name, (config, tensors) in speculators_samples(folder / "own").items():
        folder_of(folder / name, config, tensors)


def check(folder: Path, out: Path) -> None:
    """Check the heads in a folder and write what was found."""
    found = {path.name: checked(path) for path in sorted(folder.iterdir()) if path.name != "own"}
    versions = {name: importlib.metadata.version(name) for name in ("speculators", "transformers", "pydantic", "torch")}
    out.write_text(json.dumps({"validated_by": versions, "heads": found}, indent=1, sort_keys=True) + "\n")
    print(f"{len(found)} heads validated by {versions}: {out}")


def checked(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file
    from speculators import Eagle3DraftModel, Eagle3SpeculatorConfig, SpeculatorModelConfig

    written, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    config = SpeculatorModelConfig.from_pretrained(folder)
    assert type(config) is Eagle3SpeculatorConfig, type(config)
    said = json.loads(json.dumps(config.to_dict(), default=str))
    odd = [what for what in differing(written, said) if what.split(":")[0] not in READ_OTHERWISE]
    assert not odd, f"{folder.name}: {odd}"
    unknown = sorted(set(written) - set(Eagle3SpeculatorConfig.model_fields))
    config.transformer_layer_config._attn_implementation = "eager"
    model = Eagle3DraftModel(config)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= OF_THE_TARGET, (missing, unexpected)
    return {
        "config": written, "no_field_of_theirs": unknown, "logits_off": round(logits_off(model.float(), folder, tensors), 8),
        "tensors": {name: [str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in sorted(tensors.items())},
    }  # fmt: skip


def differing(written: Any, said: Any, path: str = "") -> list[str]:
    """Where what was read is not what was written; what was read may have more keys."""
    if isinstance(written, dict) and isinstance(said, dict):
        inner = {
            k: differing(v, said[k], f"{path}.{k}".lstrip(".")) if k in said else [f"{path}.{k}"] for k, v in written.items()
        }
        return [x for found in inner.values() for x in found]
    return [] if written == said else [f"{path}: {written!r}, read as {said!r}"]


@torch.inference_mode()
def logits_off(model: Any, folder: Path, tensors: dict[str, torch.Tensor]) -> float:
    """How far the module's logits are off the formula's at most, at two steps and every position of a text."""
    from eagle3_formula import eagle3_logits

    values = json.loads((folder / "config.json").read_text())
    layer = values["transformer_layer_config"]
    ours = {name.replace("layers.0.", "midlayer."): x for name, x in tensors.items()}
    own = {"eagle_config": {"norm_before_fc": values["norm_before_fc"]}, **layer, **values}
    rng, states = torch.Generator().manual_seed(11), len(values["eagle_aux_hidden_state_layer_ids"])
    ids = torch.randint(layer["vocab_size"], (N,), generator=rng)
    hidden = torch.randn(1, N, states * layer["hidden_size"], generator=rng)
    embedding = torch.randn(layer["vocab_size"], layer["hidden_size"], generator=rng)
    model.embed_tokens.weight.copy_(embedding)
    seen: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda module, given, made: seen.append(made[0]))
    model(hidden, ids[None], torch.zeros(1, N, dtype=torch.long), ttt_steps=2)
    off = 0.0
    for i in range(N):
        for step, drafted in enumerate(([], ids[i + 1 : i + 2].tolist())):
            if step and not drafted:
                continue
            wanted = eagle3_logits(ours, own, embedding, ids[: i + 1].tolist(), hidden[0, : i + 1], drafted)
            off = max(off, float((seen[step][i].double() - wanted).abs().max()))
    assert off < TOLERANCE, f"{folder.name}: {off}"
    return off


if __name__ == "__main__":
    half, folder, *rest = sys.argv[1:]
    write(Path(folder)) if half == "write" else check(Path(folder), Path(rest[0]))
