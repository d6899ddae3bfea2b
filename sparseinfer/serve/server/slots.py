"""The keys and values of all generations that run, in memory that is allocated once.

A slot is the place of one generation. Those in use are always the first ones, so that a step of all of them
reads a view; the last one moves to the slot of a generation that ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Slots:
    """keys, values: for each layer [slots, heads, length, size of a head], of the model's dtype."""

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], slots: int, length: int, dtype: torch.dtype
    ) -> None:
        """shapes: for each layer the number of heads, and the sizes of a head's key and value."""
        self.length = length
        self.keys = [torch.zeros(slots, heads, length, size, dtype=dtype) for heads, size, _ in shapes]
        self.values = [torch.zeros(slots, heads, length, size, dtype=dtype) for heads, _, size in shapes]

    def move(self, source: int, target: int, count: int) -> None:
        """Copies the first `count` tokens of a slot to another one."""
        for held in (*self.keys, *self.values):
            held[target, :, :count] = held[source, :, :count]

    def cache(self, first: int, rows: int, positions: Tensor, seen: int) -> Cache:
        """What a model's call writes to and reads: `rows` slots from `first` on, tokens at `positions`
        [rows, tokens], which see the first `seen` tokens of their slots as far as the mask allows.
        """
        slots = slice(first, first + rows)
        pairs = zip(self.keys, self.values, strict=True)
        return Cache(layers=[_Layer(keys[slots], values[slots], positions, seen) for keys, values in pairs])


class _Layer(CacheLayerMixin):
    """A layer's slots, as transformers wants them."""

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor, seen: int) -> None:
        super().__init__()
        self.keys, self.values, self.positions, self.seen = keys, values, positions, seen
        self.is_initialized = True

    def lazy_initialization(self, *args: Any) -> None:
        raise NotImplementedError  # never called: is_initialized

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = torch.arange(keys.shape[0]).unsqueeze(1)
        # Two indices with a slice between them: their dimensions come first.
        self.keys[rows, :, self.positions] = keys.transpose(1, 2)
        self.values[rows, :, self.positions] = values.transpose(1, 2)
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length
