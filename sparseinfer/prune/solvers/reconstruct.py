"""Reconstruct: a solver that computes the best values of the kept weights for a given mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_int
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.methods.method import Method, Pruned
from sparseinfer.prune.solvers.hessian import (
    check_damping,
    damped,
    filled,
    finite_gram,
    squared_outputs,
    warn_of_few_tokens,
)

# A row is done when its residual is this small, relative to its first: what float32 resolves.
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Reconstruct(Method):
    """Refit the weights that another method keeps, by least squares on each layer's own output.

    mask        a method, whose masks and new weights are the start, such as Wanda(0.5); or masks by the names
                of the layers, bool, True = kept, shape of the weight
    damping     added to the diagonal of each Gram matrix, as a fraction of the mean of its diagonal
    iterations  of conjugate gradients, at most; 50 is chosen, not measured

    The error over the calibration tokens does not increase in any row. Weights that are zero before stay zero
    (see `hessian.filled`). TypeError or ValueError if an argument is not as described, or masks are of other
    layers.
    """

    mask: Method | Mapping[str, Tensor]
    _: KW_ONLY
    damping: float = 0.01
    iterations: int = 50

    def __post_init__(self) -> None:
        if not isinstance(self.mask, (Method, Mapping)):
            raise TypeError(f"mask: expected a method or masks by name, got {type(self.mask).__name__}")
        check_damping(self.damping)
        check_int("iterations", self.iterations, 1)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"gram"}) | (self.mask.needs if isinstance(self.mask, Method) else frozenset())

    def prune(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Pruned]:
        assert stats is not None
        grams = {fqn: finite_gram(fqn, stats[fqn]) for fqn in layers}
        if isinstance(self.mask, Method):
            starts = self.mask.prune(layers, stats)
        else:
            starts = _checked_masks(self.mask, layers)
        pruned = {}
        for fqn, layer in layers.items():
            dtype = torch.promote_types(layer.weight.dtype, grams[fqn].dtype)
            before = layer.matrix().to(dtype)
            weight = reconstruct(
                before,
                layer.matrix(starts[fqn].weight).to(dtype),
                layer.matrix(starts[fqn].mask) & filled(before),
                grams[fqn].to(dtype),
                damping=self.damping,
                iterations=self.iterations,
            )
            pruned[fqn] = Pruned(starts[fqn].mask, layer.unmatrix(weight).to(layer.weight.dtype))
        warn_of_few_tokens(layers, stats)
        return pruned

    def spread(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None
    ) -> list[tuple[Method, Mapping[str, Layer]]]:
        if not isinstance(self.mask, Method):
            return super().spread(layers, stats)
        return [
            (replace(self, mask=resolved), its_layers)
            for resolved, its_layers in self.mask.spread(layers, stats)
        ]


def reconstruct(
    weight: Tensor, start: Tensor, mask: Tensor, gram: Tensor, *, damping: float, iterations: int
) -> Tensor:
    """Ŵ [groups, n, k], zero where pruned, that minimises tr((Ŵ - W)·H·(Ŵ - W)ᵀ), H the damped Gram matrix.

    weight, start  [groups, n, k], float32 or float64: W, and Ŵ to begin with
    mask           [groups, n, k], True = kept
    gram           [groups, k, k], dtype of the weight
    damping        see `hessian.damped`
    iterations     at most

    Conjugate gradients on the normal equations of all rows at once, with their diagonal as preconditioner: an
    iteration is one product with H. A row whose error over the tokens, without damping, would grow, as
    damping and rounding can bring about, keeps its start.
    """
    hessian = damped(gram, damping)
    start = start.masked_fill(~mask, 0)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)[:, None]
    inverse_diagonal = torch.where(mask & (diagonal > 0), 1 / diagonal, 0.0)
    solution = start.clone()
    residual = ((weight - solution) @ hessian).masked_fill(~mask, 0)
    direction = residual * inverse_diagonal
    energy = (residual * direction).sum(-1, keepdim=True)
    enough = _TOLERANCE**2 * energy
    for _ in range(iterations):
        product = (direction @ hessian).masked_fill(~mask, 0)
        curvature = (direction * product).sum(-1, keepdim=True)
        active = (energy > enough) & (curvature > 0)
        if not active.any():
            break
        step = torch.where(active, energy / curvature, 0.0)
        solution += step * direction
        residual -= step * product
        scaled = residual * inverse_diagonal
        previous, energy = energy, (residual * scaled).sum(-1, keepdim=True)
        direction = scaled + torch.where(active, energy / previous, 0.0) * direction
    better = squared_outputs(weight - solution, gram) < squared_outputs(weight - start, gram)
    return torch.where(better, solution, start)


def _checked_masks(masks: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> dict[str, Pruned]:
    for fqn, layer in layers.items():
        if fqn not in masks:
            raise ValueError(f"mask: expected one for {fqn!r}, got none")
        mask = masks[fqn]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != layer.weight.shape:
            got = f"{mask.dtype} of {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: expected bool of {tuple(layer.weight.shape)} for {fqn!r}, got {got}")
    return {fqn: Pruned(masks[fqn].to(layer.weight.device)) for fqn, layer in layers.items()}
