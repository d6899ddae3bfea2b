"""Pruned attention, its sparse twin, and how far both may be from float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from generators import values, weight
from torch import Tensor, nn

from sparseinfer.modules import SparseLinear, SparseMultiheadAttention

E, HEADS, N, L, S = 16, 4, 3, 5, 7
EPS = torch.finfo(torch.float32).eps


def dense(**options: Any) -> nn.MultiheadAttention:
    """Pruned, with biases that are not zero."""
    mha = nn.MultiheadAttention(E, HEADS, **options).eval()
    for seed, parameter in enumerate(mha.parameters()):
        if parameter.dim() == 2:
            parameter.data = weight("random", *parameter.shape, 0.7, seed=seed) / 4
        else:
            parameter.data = values(*parameter.shape, seed=seed) / 4
    return mha


def sparse(mha: nn.MultiheadAttention, *, split: bool = False) -> SparseMultiheadAttention:
    in_proj, out_proj = SparseMultiheadAttention.linears(mha, split=split)
    parts = [SparseLinear.from_linear(linear) for linear in in_proj]
    return SparseMultiheadAttention.from_attention(mha, parts, SparseLinear.from_linear(out_proj))


def inputs(mha: nn.MultiheadAttention, *, batched: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(N, length) if mha.batch_first else (length, N) for length in (L, S, S)]
    if not batched:
        shapes = [(L,), (S,), (S,)]
    widths = (E, mha.kdim, mha.vdim)
    pairs = zip(shapes, widths, strict=True)
    return tuple(values(*shape, k, seed=k + i) / 2 for i, (shape, k) in enumerate(pairs))


@torch.no_grad()
def bound(mha: nn.MultiheadAttention, given: tuple[Tensor, Tensor, Tensor]) -> float:
    """How far attention in float32 may be from attention in float64.

    Each product of k terms is off by 2·eps·(k + 1)·max|x|·max|w|. Errors d in scores change a weight by
    2·d of it, weights are 1 together, and what is off then arrives at the output times the rows of out_proj.
    """
    in_proj, out_proj = SparseMultiheadAttention.linears(mha, split=True)
    largest, off = [0.0], [0.0]
    for x, linear in zip(given, in_proj, strict=True):
        largest.append(float(linear(x).abs().max()))
        off.append(2 * EPS * (linear.in_features + 1) * float(x.abs().max() * linear.weight.abs().max()))
    for bias in (mha.bias_k, mha.bias_v):
        largest.append(0.0 if bias is None else float(bias.abs().max()))
    p, d = max(largest), max(off)
    head = E // HEADS
    scores = (2 * head * p * d + 2 * EPS * (head + 2) * p * p) / head**0.5
    context = d + p * (2 * scores + 2 * EPS * (S + 4))
    w = out_proj.weight.abs()
    return float(w.sum(1).max() * context + 2 * EPS * (E + 1) * p * w.max()) + 4 * EPS


def assert_same(
    module: nn.Module, mha: nn.MultiheadAttention, given: tuple[Tensor, Tensor, Tensor], **options: Any
) -> None:
    def cast(t: Any) -> Any:
        return t.double() if isinstance(t, Tensor) and t.is_floating_point() else t

    twins = {id(t): t.double() for t in given}  # the same tensor stays the same tensor
    with torch.no_grad():
        got = module(*given, **options)
        wanted = copy.deepcopy(mha).double()(
            *(twins[id(t)] for t in given), **{name: cast(option) for name, option in options.items()}
        )
    tolerance = bound(mha, given)
    assert tolerance < 5e-4
    assert got[0].shape == wanted[0].shape
    assert (got[0] - wanted[0]).abs().max() <= tolerance
    assert (got[1] is None) == (wanted[1] is None)
    if wanted[1] is not None:
        assert got[1].shape == wanted[1].shape
        assert (got[1] - wanted[1]).abs().max() <= tolerance


def random_mask(*shape: int, floating: bool) -> Tensor:
    """Every row keeps its first column."""
    if floating:
        return values(*shape, seed=9)
    mask = values(*shape, seed=9) > 0
    mask[..., 0] = False
    return mask
