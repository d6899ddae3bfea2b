"""ADMM: a solver that optimises weights and mask together, then refits the kept weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from sparseinfer.prune.checks import check_int
from sparseinfer.prune.solvers.hessian import filled
from sparseinfer.prune.solvers.reconstruct import reconstruct
from sparseinfer.prune.solvers.solver import Solution, Solver

# The penalty that Boža takes where inputs are scaled to norm 1.
_RHO = 1.0


@dataclass(frozen=True)
class ADMM(Solver):
    """Alternate between the best dense weights and the nearest pruned ones, of gradually growing sparsity.

    Boža 2024, "Fast and Effective Weight Update for Pruned Large Language Models", with gradual mask
    selection. Inputs are scaled to norm 1 first, so that weights are compared as in Wanda. At the end the
    kept weights are refitted by conjugate gradients, as `Reconstruct` does it.

    sparsity, scope, pattern, damping  see SparseMethod and Solver
    iterations  total number
    gradual     number of first iterations, in which the sparsity grows along a cubic curve; afterwards the
                mask is fixed. For NM(n, m), of fixed sparsity, the mask is chosen again in each
    refit       iterations of conjugate gradients at the end

    The three defaults are choices, not tuned by measurement.
    """

    name = "admm"
    _: KW_ONLY
    iterations: int = 30
    gradual: int = 22
    refit: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("iterations", self.iterations, 1)
        check_int("gradual", self.gradual, 1)
        check_int("refit", self.refit, 0)
        if self.gradual > self.iterations:
            raise ValueError(f"gradual: expected at most {self.iterations} (iterations), got {self.gradual}")

    def solve(self, weight: Tensor, gram: Tensor, unit: tuple[int, int], sparsity: float) -> Solution:
        norm = gram.diagonal(dim1=-2, dim2=-1)[:, None].sqrt()
        dead = norm == 0
        norm = norm.masked_fill(dead, 1)
        scaled, hessian = weight * norm, gram / (norm * norm.mT)

        may_fill = filled(weight)
        mask = torch.ones_like(may_fill)

        def choose(scores: Tensor, progress: float) -> Tensor:
            nonlocal mask
            mask = self.choose(scores.masked_fill(dead | ~may_fill, 0), unit, sparsity * progress)
            return mask & may_fill

        pruned, kept = admm(
            scaled,
            hessian,
            choose,
            damping=self.damping,
            iterations=self.iterations,
            gradual=self.gradual,
        )
        refitted = reconstruct(scaled, pruned, kept, hessian, damping=self.damping, iterations=self.refit)
        return Solution(refitted / norm, mask, self.damping)


def admm(
    weight: Tensor,
    gram: Tensor,
    choose: Callable[[Tensor, float], Tensor],
    *,
    damping: float,
    iterations: int,
    gradual: int,
) -> tuple[Tensor, Tensor]:
    """The weight, zero where pruned, and the mask, each [groups, n, k].

    weight      [groups, n, k], float32 or float64
    gram        [groups, k, k], same dtype, with ones on the diagonal, or zeros for inputs that were always
    zero choose      (scores [groups, n, k], progress in (0, 1]) -> mask, True = kept: at 1 the final sparsity
    damping     added to the diagonal
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    hessian = gram + damping * identity
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian + _RHO * identity))
    target = weight @ hessian
    dual = torch.zeros_like(weight)
    dense = weight
    for i in range(iterations):
        if i < gradual:
            mask = choose((dense + dual).abs(), 1 - (1 - (i + 1) / gradual) ** 3)
        pruned = (dense + dual).masked_fill(~mask, 0)
        dual += dense - pruned
        dense = (target + _RHO * (pruned - dual)) @ inverse
    return pruned, mask
