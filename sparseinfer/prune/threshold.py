"""Thresholds: from scores to masks with an exact count of pruned weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Scope: TypeAlias = Literal["layer", "row", "global"]
SCOPES: tuple[Scope, ...] = ("layer", "row", "global")


def masks(scores: Mapping[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Bool masks, True = kept, shaped like the scores [n, ...] and on their devices.

    Pruned are exactly `round(sparsity * count)` weights, Python's rounding as in torch.nn.utils.prune,
    where count is numel / n for each output row, numel for each layer, or the total: the scope. Of equal
    scores at the threshold the first ones in row-major order (globally: in the order of the mapping) are
    pruned, on every device and thread count.
    """
    if scope == "row":
        return {
            name: keep_largest(score.flatten(1), sparsity).view_as(score) for name, score in scores.items()
        }
    if scope == "layer":
        return {
            name: keep_largest(score.reshape(1, -1), sparsity).view_as(score)
            for name, score in scores.items()
        }
    if not scores:
        return {}
    device = next(iter(scores.values())).device
    everything = torch.cat([score.reshape(-1).to(device) for score in scores.values()])
    kept = keep_largest(everything[None], sparsity)[0].split([score.numel() for score in scores.values()])
    return {
        name: part.view_as(score).to(score.device)
        for (name, score), part in zip(scores.items(), kept, strict=True)
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
