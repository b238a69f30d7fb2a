"""The C functions as Python sees them, and what they read: weights in panels, keys and values, rows of a call."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.native import build, pages

PANEL = 64  # engine.h
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
FAILURES = {
    1: "no memory or no room for so many tokens", 2: "a row hangs on one that is not there", 3: "a token outside the vocabulary",
}  # fmt: skip
CHUNK = 64  # engine.h
BLOCK = 512  # engine.h
NORMED_RESIDUAL, RAW_HIDDEN = 1, 2  # engine.h


class _Linear(ctypes.Structure):
    _fields_ = [("n", c_int64), ("k", c_int64), ("panels", c_void_p), ("bias", c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("norm1", c_void_p), ("norm_hidden", c_void_p), ("norm2", c_void_p), ("qkv", _Linear), ("o", _Linear),
        ("gate_up", _Linear), ("down", _Linear),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("hidden", "heads", "kv_heads", "head_dim", "intermediate", "n_layers", "vocab", "dtype")),
        ("eps", c_float), ("flags", c_int32), ("layers", POINTER(_Layer)), ("final_norm", c_void_p), ("embedding", c_void_p),
        ("fc", _Linear), ("cos", c_void_p), ("sin", c_void_p),
    ]  # fmt: skip


class _Cache(ctypes.Structure):
    _fields_ = [
        ("capacity", c_int64), ("length", c_int64), ("keys", c_void_p), ("values", c_void_p), ("most_waiting", c_int64),
        ("n_waiting", c_int64), ("parents", c_void_p), ("waiting_keys", c_void_p), ("key_rows", c_void_p),
        ("value_rows", c_void_p),
    ]  # fmt: skip


class _Rows(ctypes.Structure):
    _fields_ = [
        ("n", c_int64), ("ids", c_void_p), ("parents", c_void_p), ("features", c_void_p), ("hidden", c_void_p),
        ("lm_head", POINTER(_Linear)), ("logits", c_void_p), ("n_logits", c_int64), ("threads", c_int64), ("taps", c_void_p),
        ("states", c_void_p), ("n_states", c_int64), ("state_rows", c_void_p),
    ]  # fmt: skip


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ne_run": (c_int, [POINTER(_Model), POINTER(_Cache), POINTER(_Rows)]),
    "ne_append": (c_int, [POINTER(_Model), POINTER(_Cache), POINTER(_Rows)]),
    "ne_commit": (c_int, [POINTER(_Model), POINTER(_Cache), POINTER(c_int32), c_int64]),
    "ne_linear": (c_int, [POINTER(_Linear), c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64]),
    "ne_norm": (None, [c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p]),
    "ne_best": (None, [c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int64]),
    "ne_draw": (None, [c_void_p, *[c_int64] * 4, c_float, c_void_p, c_void_p, c_void_p, c_int64]),
    "ne_law": (None, [c_void_p, c_int64, c_float, c_void_p]),
    "ne_read": (None, [c_void_p, c_int64, c_int64]),
    "ne_peak": (c_double, [c_int64, c_int64]),
}


class _OfThisThread(threading.local):
    n_threads: int | None = None  # of the native functions; None: torch's number


_own = _OfThisThread()


def n_threads() -> int:
    """On how many threads the native functions run."""
    return torch.get_num_threads() if _own.n_threads is None else _own.n_threads


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Meanwhile torch runs on one thread, and the native functions on as many as torch had.

    After an operation on several threads torch's own wait for the next one awake, for milliseconds, on the CPUs that the native
    functions then lack. A largest logit is enough for it: torch shares out everything of more than 32,768 numbers.
    """
    before, outer = torch.get_num_threads(), _own.n_threads
    _own.n_threads = n_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _own.n_threads = outer
        if torch.get_num_threads() == 1:  # what a method made of it is not hidden
            torch.set_num_threads(before)


def functions(path: str | None = None) -> Any:
    """The library of a path of machine code (None: the best here), its functions' types declared.

    Raises:
        build.NoNativeEngine: there is none.
    """
    library = build.library(path)
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def up_to(size: int, unit: int = PANEL) -> int:
    return -(-size // unit) * unit


def packed(weight: Tensor) -> Tensor:
    """weight [n, k] float32 or bfloat16 -> its panels (`Linear` in engine.h), flat, in 2 MB pages where they are granted."""
    n, k = weight.shape
    whole = torch.zeros(up_to(n), up_to(k), dtype=weight.dtype)
    whole[:n, :k] = weight.detach()
    out = pages.empty((whole.numel(),), weight.dtype)
    if weight.dtype == torch.bfloat16:
        panels = whole.view(-1, PANEL, whole.shape[1] // 2, 2).permute(0, 2, 1, 3)
    else:
        panels = whole.view(-1, PANEL, whole.shape[1]).permute(0, 2, 1)
    out.view(panels.shape).copy_(panels)
    return out


class NativeLinear:
    """x [.., in] -> x @ weight.T + bias [.., out] in float32; then `silu`, `+ plus` or `* times`, as `engine.layer.Linear`."""

    engine = "native"

    def __init__(self, weight: Tensor, bias: Tensor | None = None, library: Any = None):
        self.weight, self.library = weight.detach(), library if library is not None else functions()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self._panels = packed(self.weight)
        self.n_columns = up_to(weight.shape[0])
        bias_at = None
        if self.bias is not None:
            self._bias_row = F.pad(self.bias, (0, self.n_columns - len(self.bias)))
            bias_at = self._bias_row.data_ptr()
        self.c = _Linear(self.n_columns, up_to(weight.shape[1]), self._panels.data_ptr(), bias_at)

    @property
    def bytes(self) -> int:
        """Of the panels: what a forward reads."""
        return self._panels.numel() * self._panels.element_size()

    def like(self, weight: Tensor, bias: Tensor | None = None) -> NativeLinear:
        return NativeLinear(weight, bias, self.library)

    def __call__(self, x: Tensor, *, silu: bool = False, plus: Tensor | None = None, times: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        out = torch.empty(len(rows), self.n_columns)
        _check(self.library.ne_linear(
            self.c, DTYPES[self.weight.dtype], rows.data_ptr(), len(rows), rows.shape[1], out.data_ptr(), n_threads()
        ))  # fmt: skip
        y = out[:, : self.weight.shape[0]].view(*x.shape[:-1], -1)
        y = y if self.bias is None else y + self.bias
        y = F.silu(y) if silu else y
        return y + plus if plus is not None else y * times if times is not None else y


class NativeNorm:
    """RMS norm: x [n, size] -> [n, size] in float32. A row's bits do not depend on the rows beside it."""

    def __init__(self, weight: Tensor, eps: float, library: Any):
        self.weight, self.eps, self.library = weight.detach().float().contiguous(), eps, library

    def __call__(self, x: Tensor) -> Tensor:
        x, out = x.float().contiguous(), torch.empty(x.shape, dtype=torch.float32)
        self.library.ne_norm(x.data_ptr(), self.weight.data_ptr(), len(x), x.shape[1], self.eps, out.data_ptr())
        return out


class NativeCache:
    """Keys and values of a model: of `length` committed tokens, and of rows that wait to be committed or dropped."""

    def __init__(self, n_layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype):
        self.n_layers, self.kv_heads, self.head_dim, self.dtype = n_layers, kv_heads, head_dim, dtype
        self.c = _Cache()
        self._most_waiting(PANEL)

    def reserve(self, capacity: int) -> None:
        """Empty the cache; make room for `capacity` tokens. Buffers are used again from prompt to prompt."""
        self.c.length = self.c.n_waiting = 0
        if capacity <= self.c.capacity:
            return
        capacity = up_to(capacity, 256)
        heads = self.n_layers * self.kv_heads
        self._keys = pages.empty((heads * capacity * self.head_dim,), self.dtype).zero_()
        self._values = pages.empty((heads * capacity * up_to(self.head_dim),), self.dtype).zero_()
        self.c.capacity, self.c.keys, self.c.values = capacity, self._keys.data_ptr(), self._values.data_ptr()

    def await_rows(self, n: int) -> None:
        """Make room for n more rows that wait. Those that wait already stay."""
        if self.c.n_waiting + n > self.c.most_waiting:
            self._most_waiting(up_to(2 * (self.c.n_waiting + n)))

    def _most_waiting(self, most: int) -> None:
        heads, wide, dtype = (self.n_layers, self.kv_heads), self.kv_heads * self.head_dim, self.dtype
        old, before = self.c.most_waiting, getattr(self, "_waiting", None)
        # keys in panels, keys in rows, values in rows, parents; `at`: the dimension that counts waiting rows
        self._waiting = (
            torch.zeros(*heads, most, self.head_dim, dtype=dtype), torch.zeros(self.n_layers, most, wide),
            torch.zeros(self.n_layers, most, wide), torch.zeros(most, dtype=torch.int32),
        )  # fmt: skip
        for new, kept, at in zip(self._waiting, before or (), (2, 1, 1, 0), strict=False):
            new.narrow(at, 0, old).copy_(kept)
        c = self.c
        c.most_waiting = most
        c.waiting_keys, c.key_rows, c.value_rows, c.parents = (x.data_ptr() for x in self._waiting)

    @property
    def length(self) -> int:
        return int(self.c.length)

    @length.setter
    def length(self, value: int) -> None:
        self.c.length = value

    @property
    def capacity(self) -> int:
        return int(self.c.capacity)

    @property
    def n_waiting(self) -> int:
        return int(self.c.n_waiting)

    @n_waiting.setter
    def n_waiting(self, value: int) -> None:
        self.c.n_waiting = value


class NativeModel:
    """A LLaMA's layers and final norm, or an EAGLE head's, packed; rows of tokens go through all of them in one call.

    modules: transformers' layers, or what has LLaMA's names; with a `hidden_norm`, an EAGLE-3 head's. final_norm: [hidden], or
    None. fc: an EAGLE head's. flags: of engine.h.
    """

    def __init__(
        self, modules: list[Any], embedding: Tensor, *, heads: int, kv_heads: int, head_dim: int, eps: float,
        final_norm: Tensor | None = None, fc: NativeLinear | None = None, flags: int = 0, library: Any = None,
    ):  # fmt: skip
        self.library = library if library is not None else functions()
        self.embedding, self.dtype = embedding.detach().contiguous(), embedding.dtype
        self._kept: list[Any] = [fc]
        self._layers = (_Layer * len(modules))(*(self._layer(module) for module in modules))
        self.c = _Model(
            hidden=embedding.shape[1], heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            intermediate=len(modules[0].mlp.gate_proj.weight), n_layers=len(modules), vocab=len(embedding),
            dtype=DTYPES[self.dtype], eps=eps, flags=flags,
            layers=self._layers,
            final_norm=None if final_norm is None else self._float(final_norm), embedding=self.embedding.data_ptr(),
            fc=_Linear() if fc is None else fc.c,
        )  # fmt: skip
        self.hidden_size: int = embedding.shape[1]
        self.n_positions = 0  # of the rotary tables: `turn_by`
        self.bytes: int = sum(linear.bytes for linear in self._kept if isinstance(linear, NativeLinear))

    def _float(self, weight: Tensor) -> int:
        self._kept.append(kept := weight.detach().float().contiguous())
        return kept.data_ptr()

    def _linear(self, *weights: Tensor) -> _Linear:
        self._kept.append(linear := NativeLinear(torch.cat([w.detach() for w in weights]), library=self.library))
        linear.weight = linear.weight[:0]  # the panels are all that is needed
        return linear.c

    def _layer(self, module: Any) -> _Layer:
        a, mlp = module.self_attn, module.mlp
        norm1, norm_hidden = (getattr(module, name, None) for name in ("input_layernorm", "hidden_norm"))
        gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
        pad = gate.new_zeros(up_to(len(gate)) - len(gate), gate.shape[1])
        return _Layer(
            norm1=None if norm1 is None else self._float(norm1.weight),
            norm_hidden=None if norm_hidden is None else self._float(norm_hidden.weight),
            norm2=self._float(module.post_attention_layernorm.weight),
            qkv=self._linear(a.q_proj.weight, a.k_proj.weight, a.v_proj.weight), o=self._linear(a.o_proj.weight),
            gate_up=self._linear(gate, pad, up, pad), down=self._linear(mlp.down_proj.weight),
        )  # fmt: skip

    def only(self, layers: list[int]) -> None:
        """Only these of its layers from now on, in this order."""
        self._chosen = (_Layer * len(layers))(*(self._layers[i] for i in layers))
        self.c.layers, self.c.n_layers = self._chosen, len(layers)

    def turn_by(self, cos: Tensor, sin: Tensor) -> None:
        """The rotary tables [positions, head_dim], at least as many positions as the cache has room for."""
        self._rotary = cos.float().contiguous(), sin.float().contiguous()
        self.n_positions = len(cos)
        self.c.cos, self.c.sin = (x.data_ptr() for x in self._rotary)

    def reserve(self, cache: NativeCache, room: int, rotary: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        """Empty a cache and make room for so many tokens and drafts. rotary: positions [n] -> cos and sin [n, head_dim]."""
        cache.reserve(room)
        if cache.capacity > self.n_positions:
            self.turn_by(*rotary(torch.arange(cache.capacity)))

    def new_cache(self) -> NativeCache:
        c = self.c
        return NativeCache(len(self._layers), c.kv_heads, c.head_dim, self.dtype)

    def run(
        self, cache: NativeCache, ids: Tensor, parents: Tensor | None, lm_head: NativeLinear | None, n_logits: int | None = None,
        features: Tensor | None = None, taps: Tensor | None = None, states: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """ids [n] -> (hidden [n, hidden], logits [n_logits, vocab]), float32.

        parents [n]: the waiting row that each hangs on, -1 the text's last token; the rows then wait. None: the rows are a text,
        which is committed. n_logits: of the last rows; all if None. features [n, hidden]: an EAGLE head's. states: the
        hidden states that are given side by side in place of the last one, as `methods.base.Target.prefill` numbers them.

        Raises:
            ValueError: no rows, other numbers of parents or features, or more logits of a text than its last chunk has rows.
            RuntimeError: no room, a parent that is not there, a token outside the vocabulary, or a cache longer than the tables
                of `turn_by`.
        """
        if cache.capacity > self.n_positions:
            raise RuntimeError(f"a cache of {cache.capacity} tokens; the rotary tables end at {self.n_positions}")
        n = len(ids)
        ids = ids.to(torch.int32)
        n_logits = 0 if lm_head is None else n if n_logits is None else n_logits
        if not n or n_logits > (n if parents is not None else (n - 1) % CHUNK + 1):
            raise ValueError(f"{n_logits} rows of logits of {n} tokens: a text gives those of its last {CHUNK} or fewer")
        if (parents is not None and len(parents) != n) or (features is not None and features.shape != (n, self.hidden_size)):
            raise ValueError(f"{n} tokens need as many parents, and features of {self.hidden_size} numbers each")
        hidden = torch.empty(n, self.hidden_size)
        logits = torch.empty(n_logits, lm_head.n_columns if lm_head is not None else 0)
        rows = _Rows(n=n, ids=ids.data_ptr(), hidden=hidden.data_ptr(), logits=logits.data_ptr(), n_logits=n_logits,
                     threads=n_threads())  # fmt: skip
        if lm_head is not None:
            rows.lm_head = ctypes.pointer(lm_head.c)
        if features is not None:
            features = features.float().contiguous()
            rows.features = features.data_ptr()
        if taps is not None:
            rows.taps = taps.data_ptr()
        if states:
            numbers, given = torch.tensor(states, dtype=torch.int32), torch.empty(n, len(states) * self.hidden_size)
            rows.states, rows.n_states, rows.state_rows = numbers.data_ptr(), len(states), given.data_ptr()
        if parents is None:
            _check(self.library.ne_append(self.c, cache.c, rows))
        else:
            cache.await_rows(n)
            parents = parents.to(torch.int32)
            rows.parents = parents.data_ptr()
            _check(self.library.ne_run(self.c, cache.c, rows))
        return given if states else hidden, logits if lm_head is None else logits[:, : lm_head.weight.shape[0]]

    def tap_sizes(self) -> dict[str, int]:
        """What `taps` of `run` is filled with: "layer.operator" -> numbers a row, in order. A tap [n, size] follows the other."""
        c = self.c
        of_queries, of_keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
        each = {"first norm": c.hidden, "query, key and value": of_queries + 2 * of_keys, "rotary": of_queries + of_keys,
                "attention": of_queries, "output and residual": c.hidden, "second norm": c.hidden,
                "gate and up": 2 * up_to(c.intermediate), "activation": c.intermediate,
                "down and residual": c.hidden}  # fmt: skip
        sizes = {f"{layer}.{name}": size for layer in range(c.n_layers) for name, size in each.items()}
        return sizes | {f"{c.n_layers}.final norm": c.hidden}

    def commit(self, cache: NativeCache, path: list[int]) -> None:
        """Keep the waiting rows `path`, each of which hangs on the one before; drop the others."""
        _check(self.library.ne_commit(self.c, cache.c, (c_int32 * len(path))(*path), len(path)))


def best_children(library: Any, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """logits [m, vocab] float32 -> (the k best entries of each row, ties to the lower index; their log-probabilities)."""
    m, vocab = logits.shape
    if not 0 < k <= vocab or logits.dtype != torch.float32 or logits.stride(1) != 1:
        raise ValueError(f"the {k} best of {vocab} entries in {logits.dtype} were asked for; float32, and at most all of them")
    tokens, logp = torch.empty(m, k, dtype=torch.int64), torch.empty(m, k)
    library.ne_best(
        logits.data_ptr(), m, logits.stride(0), vocab, k, tokens.data_ptr(), logp.data_ptr(), n_threads()
    )  # fmt: skip
    return tokens, logp


def draws(library: Any, logits: Tensor, temperature: float, u: Tensor) -> Tensor:
    """`engine.sampling.draws` from the logits' softmax, in one call: logits [m, vocab] float32, u [m, k] -> tokens [m, k]."""
    (m, vocab), k = logits.shape, u.shape[1]
    if logits.dtype != torch.float32 or logits.stride(1) != 1 or u.dtype != torch.float64 or len(u) != m:
        raise ValueError(f"draws from {m} rows of {logits.dtype} by {len(u)} of {u.dtype}; float32 and as many of float64")
    u, tokens = u.contiguous(), torch.empty(m, k, dtype=torch.int64)
    sums = torch.empty(m, -(-vocab // BLOCK), dtype=torch.float64)
    library.ne_draw(
        logits.data_ptr(), m, logits.stride(0), vocab, k, 1 / temperature, u.data_ptr(), tokens.data_ptr(), sums.data_ptr(),
        n_threads(),
    )  # fmt: skip
    return tokens


@dataclass(frozen=True, slots=True)
class Laws:
    """The law that `draws` drew each row from: [row] -> [vocab] float64, made when it is asked for. Few of them are."""

    library: Any
    logits: Tensor
    temperature: float

    def __getitem__(self, row: int) -> Tensor:
        logits = self.logits[row]
        law = torch.empty(len(logits), dtype=torch.float64)
        self.library.ne_law(logits.data_ptr(), len(logits), 1 / self.temperature, law.data_ptr())
        return law


def _check(failed: int) -> None:
    if failed:
        raise RuntimeError(f"the native engine refuses: {FAILURES.get(failed, failed)}")


def read_rate(library: Any, block: Tensor, threads: int) -> float:
    """Bytes a second that so many threads read of a block of memory, as a forward reads weights. Raises nothing."""
    began = time.perf_counter()
    library.ne_read(block.data_ptr(), n_bytes := block.numel() * block.element_size() // 256 * 256, threads)
    return n_bytes / (time.perf_counter() - began)


def peak_rate(library: Any, threads: int, rounds: int = 2_000_000) -> float:
    """float32 operations a second of so many threads at best: multiply-adds from registers."""
    began = time.perf_counter()
    done: float = library.ne_peak(rounds, threads)
    return done / (time.perf_counter() - began)
