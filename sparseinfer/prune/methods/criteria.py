"""The criteria: methods that score weights by importance and prune the lowest scores."""

from __future__ import annotations

import zlib
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparseinfer.prune.calibration.statistics import LayerStats
from sparseinfer.prune.importance import diagonal_hessian, gradient, magnitude, ria, taylor, wanda
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.methods.criterion import Criterion
from sparseinfer.prune.methods.threshold import Scope


@dataclass(frozen=True)
class Magnitude(Criterion):
    """Prune the weights with the smallest absolute values: the L1 criterion of torch.nn.utils.prune.

    sparsity, scope, pattern, threshold  see SparseMethod and Criterion
    norm                                 of a block, row or column: 1 the mean |w|, 2 the root of the mean w²

    Masks equal torch's l1_unstructured ("layer"), global_unstructured ("global") and ln_structured (pattern
    Row() or Column()) wherever magnitudes differ; of equal magnitudes, which torch leaves undefined, the
    first in row-major order are pruned. TypeError or ValueError if an argument is not as described.
    """

    name = "magnitude"

    _: KW_ONLY
    norm: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in (1, 2):
            raise ValueError(f"norm: expected 1 or 2, got {self.norm!r}")

    @property
    def unit_norm(self) -> int:
        return self.norm

    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        return magnitude(layer.matrix())


@dataclass(frozen=True)
class Random(Criterion):
    """Prune weights at random, each set of them equally likely: the baseline for other criteria.

    sparsity, scope, pattern  see SparseMethod
    seed                      a layer's scores depend only on the seed and the layer's name
    """

    name = "random"

    _: KW_ONLY
    seed: int = 0

    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        # Drawn on the CPU: the same masks on every device.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{layer.fqn}".encode()))
        drawn = torch.rand(layer.weight.shape, generator=generator)
        return layer.matrix(drawn).to(layer.weight.device)


@dataclass(frozen=True)
class Gradient(Criterion):
    """Prune the weights with the smallest gradients |∂L/∂w|, summed over the calibration batches.

    sparsity, scope, pattern, threshold  see SparseMethod and Criterion
    """

    name = "gradient"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        return gradient(layer.matrix(_grad(stats)))


@dataclass(frozen=True)
class Taylor(Criterion):
    """Prune the weights whose removal changes the loss least to the first order: |w · ∂L/∂w|.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", for
    single weights; gradients are summed over the calibration batches.

    sparsity, scope, pattern, threshold  see SparseMethod and Criterion
    """

    name = "taylor"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        return taylor(layer.matrix(), layer.matrix(_grad(stats)))


@dataclass(frozen=True)
class Wanda(Criterion):
    """Prune the weights with the smallest |w_ij| · ‖x_j‖₂, by default compared within each output row.

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models".

    sparsity, scope, pattern, threshold  see SparseMethod and Criterion; Row() and Column() need another scope
    """

    name = "wanda"
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    scope: Scope = "row"

    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        return wanda(layer.matrix(), _sq(stats))


@dataclass(frozen=True)
class RIA(Criterion):
    """Prune by relative importance, the share of a weight in its row and in its column, and activations.

    Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
    without its channel permutation.

    sparsity, scope, pattern, threshold  see SparseMethod and Criterion; Row() and Column() need another scope
    exponent                             of the norms of the inputs: 0.5 in the paper, 0 ignores them
    """

    name = "ria"
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    scope: Scope = "row"
    _: KW_ONLY
    exponent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.exponent < float("inf"):
            raise ValueError(f"exponent: expected a finite number of at least 0, got {self.exponent!r}")

    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        return ria(layer.matrix(), _sq(stats), self.exponent)


@dataclass(frozen=True)
class DiagonalHessian(Criterion):
    """Prune the weights with the smallest w_ij² · Σ x_j²: optimal brain damage for each layer's own output.

    LeCun et al. 1989, "Optimal Brain Damage", with the Hessian of the layer's squared error, whose diagonal
    is that of the Gram matrix. Within a row it orders weights as Wanda does.

    sparsity, scope, pattern, threshold  see SparseMethod and Criterion
    """

    name = "hessian"
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})

    def scores(self, layer: Layer, stats: LayerStats | None) -> Tensor:
        return diagonal_hessian(layer.matrix(), _sq(stats))


def _sq(stats: LayerStats | None) -> Tensor:
    if stats is None:
        raise ValueError(
            "stats: expected calibration statistics, got None (pass stats=calibrate(model, batches))"
        )
    return stats.sq


def _grad(stats: LayerStats | None) -> Tensor:
    if stats is None or stats.grad is None:
        raise ValueError("stats: expected gradients, got None (calibrate with a loss_fn)")
    return stats.grad
