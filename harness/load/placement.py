"""What a target needs, and where its layers go: on one GPU if they fit, else spread in order over as few as hold them.

Layers run one after another, whatever the number of GPUs: several GPUs are for room, not for speed. The LM head, the drafters
and their copy of the embedding stand on the last GPU used. The last layer is there, whose output they read.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.common.errors import UserError

if TYPE_CHECKING:
    import torch

    from harness.load.architecture import Architecture

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
PACKED = ("float32", "bfloat16")
WORKSPACE = 1 << 30  # left free on every device: activations of a prefill, logits of a tree, the allocator's own
TREE_TOKENS = 256  # the cache holds a tree beyond the context


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes in one dtype, KV caches over the whole context included."""

    first: int  # embedding
    layer: int  # one layer and its cache
    last: int  # final norm, LM head, drafters
    n_layers: int
    embedding: int  # once more where the last layer is on another device than the first

    @property
    def total(self) -> int:
        return self.first + self.n_layers * self.layer + self.last


def need(sizes: Architecture, dtype: str, context: int, drafters: int = 0, *, on_cpu: bool = False) -> Need:
    """What a target of these sizes needs. drafters: bytes that its drafters take.

    on_cpu: matrices in float32 and bfloat16 are kept twice there: as they are, and packed for its kernels.
    """
    size, kv = BYTES[dtype], sizes.n_kv(context + TREE_TOKENS)
    lm_head = 0 if sizes.tie_word_embeddings else sizes.n_embedding
    packed = int(on_cpu and dtype in PACKED)
    return Need(
        first=size * sizes.n_embedding,
        layer=size * ((1 + packed) * sizes.n_layer + kv),
        last=size * (lm_head + packed * sizes.n_embedding + sizes.hidden_size) + drafters,
        n_layers=sizes.num_hidden_layers,
        embedding=size * sizes.n_embedding,
    )


def split(what: Need, room: list[int]) -> list[int] | None:
    """The device of each layer, in order: as few devices as hold everything, filled alike. None: all of them do not suffice.

    room: bytes on each device. The first one used also holds the embedding, the last one also what follows the layers.
    """
    for n in range(1, len(room) + 1):
        left = list(room[:n])
        left[0] -= what.first
        left[-1] -= what.last + (what.embedding if n > 1 else 0)
        fit = [max(bytes_left // what.layer, 0) for bytes_left in left]
        if min(left) < 0 or fit[-1] < 1 or sum(fit) < what.n_layers:
            continue
        ends = [what.n_layers * sum(fit[: i + 1]) // sum(fit) for i in range(n)]  # in proportion: the last holds at least one
        return [next(i for i, end in enumerate(ends) if layer < end) for layer in range(what.n_layers)]
    return None


def layers_that_fit(what: Need, room: list[int]) -> int:
    """How many of its first layers fit into these rooms, with all that is no layer; 0: not even one. room: as in `split`."""
    return next((n for n in range(what.n_layers, 0, -1) if split(replace(what, n_layers=n), room) is not None), 0)


def device_map(layers: list[int]) -> dict[str, int]:
    """What `split` answers, by the names that transformers gives the modules of a LLaMA."""
    named = {f"model.layers.{i}": device for i, device in enumerate(layers)}
    ends = {"model.embed_tokens": layers[0], "model.rotary_emb": layers[0], "model.norm": layers[-1], "lm_head": layers[-1]}
    return named | ends


def let_go() -> None:
    """Free what is no longer referred to, on GPUs too: a model may be as large as half of one, and another is loaded next.

    What cuBLAS works in goes, too: where it lies in the block of a model's weights, that whole block would stay.
    """
    import torch

    from methods.engine.static.replay import drop_workspaces

    gc.collect()
    if torch.cuda.is_available():
        drop_workspaces()
        torch.cuda.empty_cache()


def free_on_gpu(i: int) -> int:
    """Bytes free on a GPU, less a workspace: those that nobody has, and those that torch has and nothing lies in."""
    import torch

    unused = torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i)
    return torch.cuda.mem_get_info(i)[0] + unused - WORKSPACE


def free_on_gpus() -> list[int]:
    """The same of each GPU that this process sees."""
    import torch

    return [free_on_gpu(i) for i in range(torch.cuda.device_count())]


def on_gpus(
    sizes: Architecture | None, dtype: str, context: int, room: list[int], drafters: int = 0
) -> dict[str, torch.device] | None:
    """A `device_map` for transformers over GPUs with `room` bytes each. None: it takes none, the first GPU will do.

    drafters: bytes that the drafters take.

    Raises:
        UserError: it does not fit on all of them together.
    """
    import torch

    if sizes is None:  # not LLaMA's names: one GPU, or torch's own error
        return None
    what = need(sizes, dtype, context, drafters)
    layers = split(what, room)
    if layers is None:
        raise UserError(
            f"{gb(what.total)} in {dtype} do not fit on {len(room)} GPU{'s' * (len(room) != 1)} with "
            f"{' + '.join(gb(n) for n in room)} free, used in this order: use more of them, put those with most room first "
            "(CUDA_VISIBLE_DEVICES), or a YAML with a lower context_length"
        )
    if layers[-1] == 0:
        return None
    return {name: torch.device("cuda", i) for name, i in device_map(layers).items()}


def gb(n: float) -> str:
    """`1.5 GB`."""
    return f"{n / 1e9:.1f} GB"
