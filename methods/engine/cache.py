"""A preallocated KV cache behind transformers' Cache interface: append, keep a path, cut back. Batch is 1.

transformers' own DynamicCache copies all keys and values at every step and its crop cannot keep a path; both arms of a
ratio use this one instead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from methods.engine.transfer import sent


class TreeCache(Cache):
    """`length` committed tokens; a forward over n tokens writes its keys and values at [length, length + n).

    Layers are grouped by device, one buffer [layers, kv_heads, capacity, head_dim] each for keys and values.
    """

    def __init__(self, devices: list[torch.device], kv_heads: int, head_dim: int, dtype: torch.dtype):
        self.layers = []  # transformers asks its layers about sliding windows: there are none
        self.devices, self.kv_heads, self.head_dim, self.dtype = devices, kv_heads, head_dim, dtype
        self.length, self.capacity = 0, 0
        self._where: list[tuple[torch.device, int]] = []
        counts: dict[torch.device, int] = {}
        for device in devices:
            self._where.append((device, counts.get(device, 0)))
            counts[device] = counts.get(device, 0) + 1
        self._counts = counts
        self._keys: dict[torch.device, Tensor] = {}
        self._values: dict[torch.device, Tensor] = {}

    def reserve(self, capacity: int) -> None:
        """Empty the cache; make room for `capacity` tokens. Buffers are reused from prompt to prompt."""
        self.length = 0
        if capacity <= self.capacity:
            return
        self.capacity = -(-capacity // 256) * 256
        for device, n_layers in self._counts.items():
            shape = (n_layers, 1, self.kv_heads, self.capacity, self.head_dim)
            self._keys[device] = torch.zeros(shape, dtype=self.dtype, device=device)
            self._values[device] = torch.zeros(shape, dtype=self.dtype, device=device)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        device, slot = self._where[layer_idx]
        end = self.length + key_states.shape[2]
        keys, values = self._keys[device][slot], self._values[device][slot]
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """The whole buffers of a layer's keys and values [kv_heads, capacity, head_dim], what is not committed included."""
        device, slot = self._where[layer]
        return self._keys[device][slot, 0], self._values[device][slot, 0]

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The buffers of keys and of values of the layers on a device [layers, 1, kv_heads, capacity, head_dim]; none without."""
        return (self._keys[device], self._values[device]) if device in self._keys else ()

    def append(self, n: int) -> None:
        """Commit the first n tokens of the last forward."""
        self.length += n

    def keep(self, path: list[int]) -> None:
        """Commit the tokens of the last forward at the offsets `path` (increasing), in that order; drop the others."""
        if path != list(range(len(path))):
            for device in self._counts:
                index = sent(path, device) + self.length
                end = self.length + len(path)
                for buffer in (self._keys[device], self._values[device]):
                    buffer[:, :, :, self.length : end] = buffer.index_select(3, index)
        self.length += len(path)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0
