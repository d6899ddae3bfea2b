"""Computes masks from scores, by exact count or by a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sparseinfer.prune.patterns import NM, units

Scope: TypeAlias = Literal["layer", "row", "global"]
SCOPES: tuple[Scope, ...] = ("layer", "row", "global")


def unit_scores(scores: Tensor, unit: tuple[int, int], norm: int = 1) -> Tensor:
    """One score for each unit of r × c weights, [groups, n / r, k / c], from those of weights [groups, n, k].

    It is the mean of the scores (norm=1) or the root of their mean square (norm=2), summed in float64, so
    that units of different size can be compared.
    """
    if unit == (1, 1) or not scores.numel():
        return scores
    members = units(scores, unit).double()
    return members.mean(-1) if norm == 1 else members.square().mean(-1).sqrt()


def layer_mask(scores: Tensor, sparsity: float, scope: Scope) -> Tensor:
    """Bool mask, True = kept, of the units' scores [groups, rows, columns] of one layer.

    Prunes exactly `round(sparsity * count)` units, Python's rounding as in torch.nn.utils.prune, where
    count is that of each row ("row") or of the layer. Of equal scores at the threshold the first ones in
    row-major order are pruned, on every device and thread count.
    """
    rows = scores.flatten(0, 1) if scope == "row" else scores.reshape(1, -1)
    return keep_largest(rows, sparsity).view(scores.shape)


def n_of_m_mask(scores: Tensor, pattern: NM) -> Tensor:
    """Bool mask [groups, n, k] that keeps the n largest scores of each m neighbours in a row.

    Of equal scores the leftmost are pruned.
    """
    neighbours = scores.reshape(-1, pattern.m)
    return keep_largest(neighbours, pattern.sparsity).view(scores.shape)


def global_masks(
    scores: Mapping[str, Tensor], sizes: Mapping[str, int], sparsity: float
) -> dict[str, Tensor]:
    """Masks of the units' scores of all layers compared together; `sizes` are the weights in a unit of each.

    If all units have the same size, exactly `round(sparsity * count)` are pruned, ties in the order of the
    mapping. Otherwise the lowest are pruned, as many as bring the fraction of pruned weights nearest to
    `sparsity`.
    """
    if not scores:
        return {}
    device = next(iter(scores.values())).device
    everything = torch.cat([score.reshape(-1).to(device) for score in scores.values()])
    if len(set(sizes.values())) == 1:
        kept = keep_largest(everything[None], sparsity)[0]
    else:
        weights = torch.cat([torch.full((score.numel(),), sizes[name]) for name, score in scores.items()])
        kept = _keep_heaviest(everything, weights.to(device), sparsity)
    masks = kept.split([score.numel() for score in scores.values()])
    return {
        name: mask.view(score.shape).to(score.device)
        for (name, score), mask in zip(scores.items(), masks, strict=True)
    }


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """Mask [rows, columns] that prunes the `round(sparsity * columns)` lowest scores of each row.

    Of equal scores the leftmost are pruned. Counts are integers throughout, so they are exact at every size.
    NaN scores are not allowed.
    """
    count = round(sparsity * scores.shape[1])
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    below = scores < threshold
    ties = scores == threshold
    ties_to_prune = count - below.sum(dim=1, keepdim=True)
    return ~(below | (ties & (ties.cumsum(dim=1) <= ties_to_prune)))


def _keep_heaviest(scores: Tensor, weights: Tensor, sparsity: float) -> Tensor:
    """Mask [count] that prunes the lowest scores until their weights are nearly `sparsity` of the total."""
    order = scores.argsort(stable=True)
    pruned = weights[order].cumsum(0)
    wanted = sparsity * float(pruned[-1]) if len(pruned) else 0.0
    before = pruned - weights[order]
    kept = torch.ones_like(scores, dtype=torch.bool)
    # A unit goes if that brings the sum nearer to what is wanted.
    kept[order] = pruned - wanted > wanted - before
    return kept
