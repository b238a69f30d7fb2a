"""Whose forward a target will run on, in words, before its weights are read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from harness.common.errors import UserError, in_one_line
from harness.load.config import ModelConfig
from harness.load.weights import prepared_folder, weights_folder


def expected_engine(config: ModelConfig, dtype: str) -> str:
    """What `TargetIdentity.engine` will say of a model in a dtype (a name of torch's, not `auto`) on this machine.

    Only the model's config is read, so what is stored by engine can be looked up before anything is loaded. Weights that are not
    here yet are fetched, and the native engine is compiled if it was not.

    Raises:
        UserError: the weights cannot be had, transformers does not take their config, or `HARNESS_ENGINE` asks for an engine that
            cannot run the model here.
    """
    import torch

    from methods.engine.engines import target_type

    folder = prepared_folder(config) or weights_folder(config)[0]
    try:
        model, named = _without_weights(folder), getattr(torch, dtype)
        return target_type(model, named).engine_in(model, named)
    except Exception as e:  # of a config's value of another type nearly any error may come
        raise UserError(f"cannot tell which engine runs model {config.name} of {folder}: {in_one_line(e)}") from None


@cache
def _without_weights(folder: Path) -> Any:
    """A folder's model as transformers' module, on the device that it would be on, with no memory behind its weights."""
    import torch
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode

    from harness.load.dtype import device

    sizes = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with FakeTensorMode(), torch.device(device()):
        return transformers.AutoModelForCausalLM.from_config(sizes, trust_remote_code=False)
