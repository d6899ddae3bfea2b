"""Least squares: new values for the weights that read what is left of a layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.structured.groups import Group
from sparseinfer.prune.structured.importance import Context, columns_of
from sparseinfer.prune.structured.kinds import input_axis


@torch.no_grad()
def refitted(
    groups: Sequence[Group], removed: Mapping[str, Sequence[int]], context: Context, damping: float
) -> dict[str, Tensor]:
    """weight -> its values before its inputs are removed: those that are left minimise ‖X·Wᵀ - X·Ŵᵀ‖² over
    the calibration tokens, as in Meng et al. 2024, "OSSCAR". Of layers with a Gram matrix.

    damping  added to the Gram matrix's diagonal, of its mean
    """
    gone: dict[str, list[np.ndarray]] = {}
    for group in groups:
        units = list(removed.get(group.name, ()))
        for member in group.members if units else ():
            if input_axis(*context.module_of(member.weight)) == member.axis:
                gone.setdefault(member.weight, []).append(member.indices[units].reshape(-1))
    new: dict[str, Tensor] = {}
    for name, channels in gone.items():
        layer, stats = context.layers.get(name), context.stats_of(name)
        if layer is not None and stats is not None and stats.gram is not None and layer.groups == 1:
            new[name] = _refitted(layer, stats.gram[0], np.concatenate(channels), damping)
    return new


def _refitted(layer: Layer, gram: Tensor, channels: np.ndarray, damping: float) -> Tensor:
    weight = layer.matrix()[0].double().cpu()
    gram = gram.double().cpu()
    left = torch.ones(len(gram), dtype=torch.bool)
    left[columns_of(layer, channels)] = False
    h = gram[left][:, left]
    h += torch.eye(len(h), dtype=h.dtype) * (damping * h.diagonal().mean()).clamp_min(1e-12)
    # Damping pulls to the old weights, not to zero.
    change = weight[:, ~left] @ gram[~left][:, left]
    fitted = weight.clone()
    fitted[:, left] += torch.cholesky_solve(change.T, torch.linalg.cholesky(h)).T
    return layer.unmatrix(fitted[None]).to(layer.weight.dtype).to(layer.weight.device)
