"""What a target needs, and where its layers go: on one GPU if they fit, else spread in order over as few as hold them.

Layers run one after another whatever the number of GPUs: several are for fit, not for speed. The LM head, the draft head and
its copy of the embedding stand on the last GPU used, beside the last layer, whose output all three read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.common.errors import UserError
from harness.load.config import Architecture

if TYPE_CHECKING:
    import torch

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
WORKSPACE = 1 << 30  # left free on every device: activations of a prefill, logits of a tree, the allocator's own
TREE_TOKENS = 256  # the cache holds a tree beyond the context


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes in one dtype, KV caches over the whole context included."""

    first: int  # embedding
    layer: int  # one layer and its cache
    last: int  # final norm, LM head, draft head with its cache, other drafters
    n_layers: int
    embedding: int  # once more where the last layer is on another device than the first

    @property
    def total(self) -> int:
        return self.first + self.n_layers * self.layer + self.last


def need(sizes: Architecture, dtype: str, context: int, others: int = 0) -> Need:
    """The draft head is counted along, needed or not: at most a sixteenth of its target. others: bytes of other drafters."""
    size, kv = BYTES[dtype], sizes.n_kv(context + TREE_TOKENS)
    lm_head = 0 if sizes.tie_word_embeddings else sizes.n_embedding
    return Need(
        first=size * sizes.n_embedding,
        layer=size * (sizes.n_layer + kv),
        last=size * (lm_head + sizes.hidden_size + sizes.n_head + kv) + others,
        n_layers=sizes.num_hidden_layers,
        embedding=size * sizes.n_embedding,
    )


def split(what: Need, room: list[int]) -> list[int] | None:
    """The device of each layer, in order; as few devices as hold everything, filled alike. None where all do not suffice.

    room: bytes on each device. The first one used holds the embedding besides, the last one what follows the layers.
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


def device_map(layers: list[int]) -> dict[str, int]:
    """`split`'s answer by the names of a LLaMA's modules in transformers."""
    named = {f"model.layers.{i}": device for i, device in enumerate(layers)}
    ends = {"model.embed_tokens": layers[0], "model.rotary_emb": layers[0], "model.norm": layers[-1], "lm_head": layers[-1]}
    return named | ends


def free_on_gpus() -> list[int]:
    """Bytes free on each GPU that this process sees, a workspace taken off."""
    import torch

    return [torch.cuda.mem_get_info(i)[0] - WORKSPACE for i in range(torch.cuda.device_count())]


def on_gpus(
    sizes: Architecture | None, dtype: str, context: int, room: list[int], others: int = 0
) -> dict[str, torch.device] | None:
    """A `device_map` for transformers over GPUs with `room` bytes each; None: no need of one, the first GPU will do.
    others: bytes of drafters besides the EAGLE head.

    Raises:
        UserError: it does not fit on all of them together.
    """
    import torch

    if sizes is None:  # not LLaMA's names: one GPU, or torch's own error
        return None
    what = need(sizes, dtype, context, others)
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
    return f"{n / 1e9:.1f} GB"
