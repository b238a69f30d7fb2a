"""RADAR's network (arXiv 2512.14069): looks at the frontier after each call of the drafter, and says stop or continue.

An LSTM keeps what it saw in the round so far; an MLP on that and on the frontier gives the logits of both actions: 89,730
parameters for a frontier of 10 nodes. It runs in numpy on the CPU, where a draft's values are: a look reads nothing more from
a device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from harness.common.errors import UserError
from harness.common.plain_names import HASH, split_hash, why_not_plain

Array = NDArray[np.float32]
SUFFIX = ".safetensors"
LOOK_MS = 0.022  # of one look: median of 2,000 on an Intel Xeon, one thread
STOP, CONTINUE = 0, 1  # the logits' columns
NAMES = ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0", "mlp.0.weight", "mlp.0.bias",
         "mlp.3.weight", "mlp.3.bias")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What the LSTM keeps within a round: h, c [hidden]."""

    h: Array
    c: Array


class StopNet:
    """parameters: by the names and in the shapes that torch gives an LSTM and a linear layer (gates in the order i, f, g, o).

    Raises:
        ValueError: one is missing, or of another shape.
    """

    def __init__(self, parameters: Mapping[str, Array]):
        try:
            w = [np.asarray(parameters[name], np.float32) for name in NAMES]
        except KeyError as e:
            raise ValueError(f"parameter {e.args[0]} is missing") from None
        self.n_parameters = sum(p.size for p in w)
        if w[0].ndim != 2 or w[4].ndim != 2:
            raise ValueError("weights of other shapes than this network's")
        (gates, dim), m = w[0].shape, len(w[4])
        hidden = gates // 4
        shapes = [(4 * hidden, dim), (4 * hidden, hidden), (gates,), (gates,), (m, hidden + dim), (m,), (2, m), (2,)]
        if [p.shape for p in w] != shapes or not all(np.isfinite(p).all() for p in w):
            raise ValueError("weights of other shapes than this network's, or numbers that are not finite")
        self.dim, self._hidden = dim, hidden
        self._gates = np.concatenate([w[0], w[1]], axis=1)  # on [s; h]
        self._gate_bias, self._mlp, self._out = w[2] + w[3], (w[4], w[5]), (w[6], w[7])

    def start(self) -> Seen:
        """A round begins."""
        return Seen(np.zeros(self._hidden, np.float32), np.zeros(self._hidden, np.float32))

    def look(self, frontier: Array, seen: Seen) -> tuple[Array, Seen]:
        """frontier [dim]: cumulative log-probabilities, highest first; -> (logits [2] of stop and continue, what is kept)."""
        i, f, g, o = (self._gates @ np.concatenate([frontier, seen.h]) + self._gate_bias).reshape(4, -1)
        c = _sigmoid(f) * seen.c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        hidden = np.maximum(self._mlp[0] @ np.concatenate([h, frontier]) + self._mlp[1], 0.0)
        return self._out[0] @ hidden + self._out[1], Seen(h, c)

    def stop(self, frontier: Array, seen: Seen) -> tuple[float, Seen]:
        """(P(stop), what is kept)."""
        logits, seen = self.look(frontier, seen)
        return float(_sigmoid(logits[STOP] - logits[CONTINUE])), seen


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def pinned(weights: str) -> str:
    """A policy by the name of a shipped one or by its file, with or without its hash; -> with it, as a record keeps it.

    Raises:
        UserError: there is none, or its file is another than the hash says.
    """
    given, told = split_hash(weights)
    sha = hashlib.sha256(_read(given)).hexdigest()[:HASH]
    if told and told != sha:
        raise UserError(f"weights={weights!r}: the file is another one now ({given}@{sha})")
    return f"{given}@{sha}"


def stop_net(weights: str) -> StopNet:
    """The network of `NAME`, `PATH`, or either with `@` and a hash.

    Raises:
        UserError: as `pinned`, or the file holds no such network.
    """
    given, _ = split_hash(pinned(weights))
    return _made(given, _read(given))


@lru_cache(maxsize=8)  # a builder is called for each generation
def _made(given: str, file: bytes) -> StopNet:
    try:
        return StopNet(load(file))
    except (SafetensorError, ValueError) as e:
        raise UserError(f"weights={given!r} holds no policy that `harness train-policy` writes: {e}") from None


def trained_for(weights: str) -> dict[str, str]:
    """What `harness train-policy` wrote of a policy: `head_id`, `model`, `tree` (top_k/depth/total) and others; may be empty.

    Raises:
        UserError: as `stop_net`.
    """
    stop_net(weights)
    file = _read(pinned(weights).partition("@")[0])
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    return dict(header.get("__metadata__", {}))


def shipped() -> list[str]:
    """The names of the policies that are part of the package."""
    with resources.as_file(resources.files("models") / "policies") as folder:
        return sorted(file.stem for file in folder.glob(f"*{SUFFIX}"))


def _read(given: str) -> bytes:
    if why_not_plain(given) is None and given in shipped():
        return (resources.files("models") / "policies" / f"{given}{SUFFIX}").read_bytes()
    path = Path(given)
    if not path.is_file():
        raise UserError(f"weights={given!r}: no such policy was trained: there is none of that name and no such file; shipped: "
                        f"{', '.join(shipped()) or 'none'}; `harness train-policy radar` trains one")  # fmt: skip
    return path.read_bytes()
