"""Whose forward a target will run on, in words, before its weights are read."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from harness.common.errors import UserError, in_one_line
from harness.load.config import ModelConfig
from harness.load.dtype import device
from harness.load.weights import prepared_folder, weights_folder


def expected_engine(config: ModelConfig, dtype: str) -> str:
    """What `TargetIdentity.engine` will say of a model in a dtype (a name of torch's, not `auto`) on this machine.

    Only the model's config is read, so what is stored by engine can be looked up before anything is loaded. Weights that are not
    here yet are fetched.

    Raises:
        UserError: the weights cannot be had, or transformers does not take their config.
    """
    import torch
    import transformers

    from methods.engine.layer import PACKED_DTYPES

    folder = prepared_folder(config) or weights_folder(config)[0]
    try:
        is_plain, name = _module(folder)
    except Exception as e:  # of a value of another type nearly any error may come
        raise UserError(f"cannot tell which engine runs model {config.name}: transformers does not take {folder}: "
                        f"{in_one_line(e)}") from None  # fmt: skip
    if is_plain and device().type == "cpu" and getattr(torch, dtype) in PACKED_DTYPES:
        return "lean"
    return f"transformers {transformers.__version__} {name}"


@cache
def _module(folder: Path) -> tuple[bool, str]:
    """(whether it is a plain LLaMA, the name of its class) of a folder's model, which is made without memory for weights."""
    import torch
    import transformers

    from methods.engine.llama import is_plain_llama

    sizes = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(sizes, trust_remote_code=False)
    return is_plain_llama(model), type(model).__name__
