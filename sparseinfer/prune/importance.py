"""Importance: the score of each weight. The lowest scores are pruned first.

Every function takes the matrix of a layer, weight [groups, n, k] of any floating dtype, and returns scores of
its shape in float32, or float64 where an argument is float64. The norms of the inputs, sq [groups, k], are
sums of squares over all calibration tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|w|, exact. L1 and L2 order single weights alike; they differ for patterns of several weights."""
    return weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32))


def gradient(grad: Tensor) -> Tensor:
    """|∂L/∂w|: weights that the loss depends on least are pruned first."""
    return magnitude(grad)


def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """|w · ∂L/∂w|, the first-order change of the loss when w becomes zero (Molchanov et al. 2017)."""
    return (magnitude(weight) * grad).abs()


def wanda(weight: Tensor, sq: Tensor) -> Tensor:
    """|w_ij| · ‖x_j‖₂.

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models".
    """
    scores = magnitude(weight)
    return scores * sq.sqrt().to(scores.dtype)[:, None]


def ria(weight: Tensor, sq: Tensor, exponent: float) -> Tensor:
    """(|w_ij| / Σ_j |w_ij| + |w_ij| / Σ_i |w_ij|) · ‖x_j‖₂^a: relative importance and activations.

    Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
    with a = exponent. The sums are over the rows and columns of one group.
    """
    size = magnitude(weight)
    # A row or column of zeros has no relative importance: 0 / tiny instead of 0 / 0.
    tiny = torch.finfo(size.dtype).tiny
    rows = size.sum(dim=2, keepdim=True).clamp_min(tiny)
    columns = size.sum(dim=1, keepdim=True).clamp_min(tiny)
    return (size / rows + size / columns) * sq.pow(exponent / 2).to(size.dtype)[:, None]


def diagonal_hessian(weight: Tensor, sq: Tensor) -> Tensor:
    """w_ij² · H_jj with H = Σ x·xᵀ: optimal brain damage (LeCun et al. 1989) for the layer's own output.

    This is the squared error in the layer's output if only this weight is zeroed, over all tokens.
    """
    scores = magnitude(weight)
    return scores.square() * sq.to(scores.dtype)[:, None]
