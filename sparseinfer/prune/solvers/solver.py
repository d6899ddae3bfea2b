"""Solver: the base of methods that optimise each layer by itself from its Gram matrix."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.methods.method import Pruned
from sparseinfer.prune.methods.sparse import SparseMethod
from sparseinfer.prune.methods.threshold import layer_mask, n_of_m_mask, unit_scores
from sparseinfer.prune.patterns import NM, Row, expand
from sparseinfer.prune.solvers.hessian import (
    CALLER_OF_PRUNE,
    check_damping,
    filled,
    finite_gram,
    squared_outputs,
    warn_of_few_tokens,
)


@dataclass(frozen=True, eq=False)
class Solution:
    """New weights and the mask of one matrix, [groups, n, k] each, and the damping it needed."""

    weight: Tensor
    mask: Tensor
    damping: float


@dataclass(frozen=True)
class Solver(SparseMethod):
    """A method that minimises ‖X·(W - Ŵ)ᵀ‖² over the calibration tokens X, layer by layer.

    damping  added to the diagonal of each Gram matrix, as a fraction of the mean of its diagonal: it keeps
             new weights near the old ones where inputs hardly determine them. 0.01 as in SparseGPT's code

    Solvers compute in float32, in float64 for a float64 weight or Gram matrix. A Gram matrix that is still
    singular is damped more, and a warning says so. Weights of an input that was always zero are pruned first.
    With Row() nothing can compensate for a row, and every solver prunes the rows of smallest output ‖X·w‖.
    Weights that are zero stay zero (see `hessian.filled`).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    _: KW_ONLY
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)
        if self.scope == "global":
            hint = "errors of different layers do not compare; spread sparsity with a budget"
            raise ValueError(f"scope: expected 'layer' or 'row', got 'global' ({hint})")

    @abstractmethod
    def solve(self, weight: Tensor, gram: Tensor, unit: tuple[int, int], sparsity: float) -> Solution:
        """Compute the solution for one layer.

        weight    [groups, n, k], float32 or float64; where it is not `filled`, the new one has to be zero
        gram      [groups, k, k], dtype of the weight, finite
        unit      rows and columns of the weights that are pruned together
        sparsity  fraction of these units
        """

    def prune(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Pruned]:
        units = {fqn: self.pattern.unit(layer) for fqn, layer in layers.items()}
        assert stats is not None
        sparsity = self.fractions(layers)
        pruned, raised = {}, {}
        for fqn, layer in layers.items():
            if sparsity[fqn] == 0:  # the same bits as before
                pruned[fqn] = Pruned(torch.ones_like(layer.weight, dtype=torch.bool))
                continue
            gram = finite_gram(fqn, stats[fqn])
            dtype = torch.promote_types(layer.weight.dtype, gram.dtype)
            solve = self._prune_rows if isinstance(self.pattern, Row) else self.solve
            before = layer.matrix().to(dtype)
            solution = solve(before, gram.to(dtype), units[fqn], sparsity[fqn])
            if solution.damping > self.damping:
                raised[fqn] = solution.damping
            mask = layer.unmatrix(solution.mask)
            if not (filled(before) & ~solution.mask).any():  # nothing to make up for: the same bits as before
                pruned[fqn] = Pruned(mask)
                continue
            weight = solution.weight.masked_fill(~filled(before), 0)
            pruned[fqn] = Pruned(mask, layer.unmatrix(weight).to(layer.weight.dtype))
        if raised:
            taken = ", ".join(f"{fqn!r} by {damping:g}" for fqn, damping in raised.items())
            message = f"damping: expected {self.damping:g} to make Gram matrices regular, damped {taken}"
            warnings.warn(message, UserWarning, stacklevel=CALLER_OF_PRUNE)
        warn_of_few_tokens(layers, stats)
        return pruned

    def _prune_rows(self, weight: Tensor, gram: Tensor, unit: tuple[int, int], sparsity: float) -> Solution:
        """The rows of the smallest outputs, without new values: no other row can make up for one."""
        kept = layer_mask(squared_outputs(weight, gram), sparsity, self.scope)
        return Solution(weight, expand(kept, unit), self.damping)

    def choose(self, scores: Tensor, unit: tuple[int, int], sparsity: float) -> Tensor:
        """The mask [groups, n, k] that prunes the lowest scores; of a unit, the root of their mean square."""
        if isinstance(self.pattern, NM):
            return n_of_m_mask(scores, self.pattern)
        kept = layer_mask(unit_scores(scores, unit, 2), sparsity, self.scope)
        return expand(kept, unit)
