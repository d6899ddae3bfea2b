"""The Hessian of a layer's squared error: its Gram matrix, damped until it can be factorised."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor

from sparseinfer.prune.calibration.statistics import CalibrationStats, LayerStats
from sparseinfer.prune.layers.layer import Layer

# The stack level at which a warning in a method's `prune` shows the line that called `prune_`, which calls
# `prune` through two functions.
CALLER_OF_PRUNE = 5

# A Hessian that cannot be factorised gets this much damping, then ten times more, until it can. Chosen, not
# measured: some ten times what float32 resolves.
_LEAST_DAMPING = 1e-6


def check_damping(damping: object) -> None:
    """TypeError or ValueError unless it is a finite number of at least 0."""
    if isinstance(damping, bool) or not isinstance(damping, Real):
        raise TypeError(f"damping: expected a float, got {type(damping).__name__}")
    if not 0 <= float(damping) < math.inf:
        raise ValueError(f"damping: expected a finite number of at least 0, got {damping}")


def finite_gram(fqn: str, stats: LayerStats) -> Tensor:
    """Gram matrix [groups, k, k] of a layer, float32 or float64. ValueError: it is not finite."""
    assert stats.gram is not None
    if not stats.gram.isfinite().all():
        got = "NaN or infinity (its inputs are too large for their dtype)"
        raise ValueError(f"stats: expected a finite Gram matrix of {fqn!r}, got {got}")
    return stats.gram


def filled(weight: Tensor) -> Tensor:
    """Bool mask of the weights that may get a non-zero value: those that are not zero now.

    All solvers keep zeros, whatever made them. Zeros are pruned first, and no solver uses them to compensate
    for other weights, so that pruning again, less or as much as before, restores nothing. If a new mask keeps
    a zero, it starts at zero, as for criteria, and training may change it.
    """
    return weight != 0


def squared_outputs(weight: Tensor, gram: Tensor) -> Tensor:
    """‖X·w‖² of each row w of a weight, or a change of one, [groups, n, k], as [groups, n, 1]."""
    return (weight @ gram * weight).sum(-1, keepdim=True)


def damped(gram: Tensor, damping: float) -> Tensor:
    """A Gram matrix [groups, k, k] with `damping` times the mean of its diagonal added to the diagonal."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    return gram + torch.diag_embed((damping * _mean(diagonal)).expand_as(diagonal))


def inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """U [groups, k, k] float64, upper triangular with UᵀU = (damped Gram)⁻¹, and the damping it needed.

    With the order of rows and columns reversed, J·H·J = L·Lᵀ, it is U = J·L⁻¹·J: one factorisation, where
    the inverse and then its Cholesky factor would take two.
    """
    # A pivot of this size is the rounding of the Gram matrix and no more.
    least = gram.shape[-1] * torch.finfo(gram.dtype).eps * _mean(gram.diagonal(dim1=-2, dim2=-1))
    gram = gram.double()
    while True:
        lower, failures = torch.linalg.cholesky_ex(damped(gram, damping).flip(-2, -1))
        singular = lower.diagonal(dim1=-2, dim2=-1).square() <= least
        if not failures.any() and not singular.any():
            break
        damping = max(10 * damping, _LEAST_DAMPING)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    return torch.linalg.solve_triangular(lower, identity, upper=False).flip(-2, -1), damping


def warn_of_few_tokens(layers: Mapping[str, Layer], stats: CalibrationStats) -> None:
    """One warning for all layers whose Gram matrix is singular because they saw fewer tokens than inputs."""
    few = [fqn for fqn, layer in layers.items() if stats[fqn].tokens < layer.shape[2]]
    if few:
        tokens, k = stats[few[0]].tokens, layers[few[0]].shape[2]
        message = (
            f"stats: expected at least as many tokens as inputs, got {tokens} for {k} of {few[0]!r}"
            + (f" and too few for {len(few) - 1} more layers" if few[1:] else "")
            + " (only damping makes up for them; calibrate with more batches)"
        )
        warnings.warn(message, UserWarning, stacklevel=CALLER_OF_PRUNE + 1)


def _mean(diagonal: Tensor) -> Tensor:
    """[groups, k] -> means [groups, 1], without inputs that were always zero; 1 where all of them were."""
    live = (diagonal > 0).sum(-1, keepdim=True)
    return torch.where(live > 0, diagonal.sum(-1, keepdim=True) / live.clamp(min=1), 1.0)
