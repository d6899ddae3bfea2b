"""Runs softmax(scale · Q Kᵀ + mask) V on the CPU in one native call, without the matrix of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer._native import core

_NO_MASK = (0, 0, 0, 0)
_KINDS = {torch.float32: "added", torch.bool: "kept"}


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, parts: int = 0
) -> Tensor:
    """Attention [batch, heads, queries, dim] of float32 tensors on the CPU, as torch's, tokens before heads.

    q [batch, heads, queries, dim]; k, v [batch, heads, keys, dim], at least one key; any strides but in dim
    mask    bool, True = attended to, or float32 that is added to the scores; broadcast to
            [batch, heads, queries, keys]. A query without any key gets zeros.

    Sums are in float32, in an order that depends on nothing but the shape. `parts` > 0 computes that many
    ranges one after another. Not for autograd, and not seen by torch's dispatcher. ValueError: others.
    """
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        raise ValueError(
            f"k, v: expected [batch, heads, keys, dim] both, got {list(k.shape)}, {list(v.shape)}"
        )
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    if k.shape != (batch, heads, keys, dim) or keys == 0:
        raise ValueError(f"k: expected [{batch}, {heads}, keys, {dim}] with keys, got {list(k.shape)}")
    q, k, v = (x if x.stride(-1) == 1 or dim <= 1 else x.contiguous() for x in (q, k, v))
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype != torch.float32 or not x.is_cpu:
            raise ValueError(f"{name}: expected float32 on the CPU, got {x.dtype} on {x.device}")
    kind, given = "none", _NO_MASK
    if mask is not None:
        if mask.dtype not in _KINDS or not mask.is_cpu:
            raise ValueError(f"mask: expected bool or float32 on the CPU, got {mask.dtype} on {mask.device}")
        kind = _KINDS[mask.dtype]
        if mask.stride(-1) != 1 or mask.shape[-1] != keys:
            mask = mask.expand(*mask.shape[:-1], keys).contiguous()
        mask = mask.expand(batch, heads, queries, keys)
        given = _heads(mask)
    y = q.new_empty((batch, queries, heads, dim)).transpose(1, 2)
    tensors = [_heads(x) for x in (q, k, v, y)]
    core.attention(tensors, given, kind, (batch, heads, queries, keys, dim), scale, parts)
    return y


def _heads(x: Tensor) -> tuple[int, int, int, int]:
    """The address of [batch, heads, tokens, ...] and its strides."""
    batch, head, token, _ = x.stride()
    return x.data_ptr(), batch, head, token
