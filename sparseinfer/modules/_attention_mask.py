"""Combines the masks of nn.MultiheadAttention into one that is added to the scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def combined_mask(
    attn_mask: Tensor | None, padding: Tensor | None, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> Tensor | None:
    """A mask of this dtype to add to scores [n, heads, l, s]; None without any mask.

    attn_mask   [l, s] or [n * heads, l, s]; bool, True = ignored, or floats that are added
    padding     [n, s], bool or floats likewise: the key_padding_mask
    sizes       n, heads, l, s

    ValueError: another shape. TypeError: another dtype.
    """
    n, heads, length, source = sizes
    mask = None
    if attn_mask is not None:
        mask = _additive("attn_mask", attn_mask, dtype)
        shared, by_head = (length, source), (n * heads, length, source)
        if mask.shape == by_head:
            mask = mask.unflatten(0, (n, heads))
        elif mask.shape == shared:
            mask = mask[None, None]
        else:
            got = tuple(mask.shape)
            raise ValueError(f"attn_mask: expected shape {shared} or {by_head}, got {got}")
    if padding is not None:
        if padding.dim() > 2 or padding.numel() != n * source or padding.shape[-1] != source:
            raise ValueError(f"key_padding_mask: expected shape {(n, source)}, got {tuple(padding.shape)}")
        columns = _additive("key_padding_mask", padding, dtype).reshape(n, 1, 1, source)
        mask = columns if mask is None else mask + columns
    return mask


def _additive(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as what is added to scores: -inf where a bool mask is True."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    if not mask.is_floating_point():
        raise TypeError(f"{name}: expected dtype torch.bool or floating point, got {mask.dtype}")
    return mask.to(dtype)
