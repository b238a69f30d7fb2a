"""The keys of a drafter's config.json: each is used, known to change nothing, or refused where it would change what is computed.

A key that no one here knows is refused where its name speaks of computation (`COMPUTES`) and its value is not one that leaves
the computation as it is (`is_neutral`). Other unknown keys are notes of whoever made the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.common.errors import UserError

HARMLESS = frozenset((
    "attention_dropout", "attn_dropout", "attn_implementation", "_attn_implementation", "output_attentions",
))  # fmt: skip
COMPUTES = re.compile(
    r"rope|rotary|bias|(^|_)act(_|$)|activation|norm|eps|scal|multipl|cap(ping)?$|window|chunk|layer_types|attn|attention|head_dim"
    r"|expert|moe|lora|residual|qk_|sink|quant|eagle_config|speculat|draft_vocab|target_hidden|sees_"
    r"|alibi|clip|causal|parallel|gated|mlp|(^|_)aux(_|$)|layer_ids|temperature|pos_emb|embedding_type|interleav"
    r"|(^|_)ln(_|$)|(^|_)(d2t|t2d)(_|$)|dtype|(^|_|\d)bits?(_|$)", re.IGNORECASE,
)  # fmt: skip
SILU = ("silu", "swish")
FLOATS = ("auto", "float16", "bfloat16", "float32", "float64")  # how the file was written: the run says in what it computes
LARGEST = 2**24  # of a size
ROPES = {  # type -> the numbers that it takes
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def check_keys(file: Path, values: dict[str, Any], used: Collection[str], what: str) -> None:
    """file: the config.json that holds `values`. used: the keys that the reader honours. what: the kind of drafter, in words.

    Raises:
        UserError: keys that would change the computation, all of them named.
    """
    odd = {k: v for k, v in values.items() if k not in used and k not in HARMLESS and COMPUTES.search(k) and not is_neutral(k, v)}
    if values.get("use_sliding_window") is False:
        odd.pop("max_window_layers", None)  # how many layers would have one
    if odd:
        named = ", ".join(f"{k} = {str(v)[:60]}" for k, v in sorted(odd.items()))
        raise UserError(f"{file}: a {what} here does not honour {named}")


def is_neutral(key: str, value: object) -> bool:
    """Whether a value leaves the computation as it is without its key."""
    if key.endswith("act") or "activation" in key:
        return value in (None, *SILU)
    if re.search(r"causal|gated", key):
        return value in (None, True)
    if "dtype" in key and isinstance(value, str):
        return value.removeprefix("torch.") in FLOATS
    if value == 1 and type(value) is not bool and re.search(r"scal|multipl|factor|temperature", key):
        return True
    return value in (None, False, "", 0) or value == [] or value == {}


def positive(file: Path, key: str, value: object) -> float:
    """
    Raises:
        UserError: not a finite number over 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise UserError(f"{file}: {key} is {value!r}; it must be a finite number over 0")
    return float(value)


def whole(file: Path, key: str, value: object) -> int:
    """
    Raises:
        UserError: not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{file}: {key} is {value!r}; it must be a whole number of at least 1")
    if value > LARGEST:
        raise UserError(f"{file}: {key} is over {LARGEST:,}, which no drafter has")
    return value


def rope_of(file: Path, values: dict[str, Any], theta: float = 10000.0) -> tuple[float, dict[str, Any] | None]:
    """(rope_theta, what stretches the rotary table or None) by `rope_parameters`, the older `rope_scaling`, and `rope_theta`.

    theta: where none is named. What stretches it has the form of transformers' `rope_parameters`.

    Raises:
        UserError: a type that is not among `ROPES`, a value that none can have, or two that contradict each other.
    """
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        said = values.get(key)
        if said is None:
            continue
        if not isinstance(said, dict):
            raise UserError(f"{file}: {key} is {said!r}; it must be an object")
        said = {"rope_type" if k == "type" else k: v for k, v in said.items()}
        clash = sorted(k for k in said.keys() & found.keys() if said[k] != found[k])
        if clash:
            raise UserError(f"{file}: rope_scaling and rope_parameters contradict each other ({', '.join(clash)})")
        found |= said
    thetas = {positive(file, "rope_theta", x) for x in (values.get("rope_theta"), found.pop("rope_theta", None)) if x is not None}
    if len(thetas) > 1:
        raise UserError(f"{file}: two values of rope_theta ({' and '.join(f'{x:g}' for x in sorted(thetas))})")
    name = found.pop("rope_type", "default")
    if not isinstance(name, str) or name not in ROPES:
        raise UserError(f"{file}: rope_type is {name!r}; a drafter here may have {', '.join(ROPES)}")
    stretch = {key: positive(file, f"{key} of its {name} rope", found.pop(key, None)) for key in ROPES[name]}
    if (first := stretch.get("original_max_position_embeddings")) is not None:
        stretch |= {"original_max_position_embeddings": int(first)}  # as transformers wants it
    if stretch and name == "linear":
        found.pop("original_max_position_embeddings", None)  # for the record: linear does not use it
    odd = {k: v for k, v in found.items() if not is_neutral("factor", v)}
    if odd:
        raise UserError(f"{file}: {name} rope does not use {', '.join(f'{k} = {v}' for k, v in sorted(odd.items()))}")
    base = thetas.pop() if thetas else theta
    return base, {"rope_type": name, "rope_theta": base, **stretch} if stretch else None
