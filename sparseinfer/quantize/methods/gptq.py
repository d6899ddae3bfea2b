"""GPTQ: rounds column by column, and later columns make up for the error."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparseinfer._int8 import products, rounded
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_int
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.solvers.columns import settle_columns
from sparseinfer.prune.solvers.hessian import (
    CALLER_OF_PRUNE,
    check_damping,
    filled,
    finite_gram,
    inverse_factor,
    squared_outputs,
    warn_of_few_tokens,
)
from sparseinfer.quantize.clip import Clip, check_clip
from sparseinfer.quantize.methods.quantizer import Quantizer, Rounded, scales_of


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Round one column after the other, and let the later ones make up for its error.

    Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    under the mask of a pruned weight as in the authors' SparseGPT (2023): a zero is settled at zero, and what
    it was to make up for is passed on.

    damping     see `Solver`
    block_size  number of columns after which all others are updated; 128 as in the paper
    act_order   round the columns of the largest inputs first
    clip        see RoundToNearest

    A row whose error over the calibration tokens is not below that of rounding to nearest is rounded to
    nearest. Computes in float32, in float64 for a float64 weight or Gram matrix.
    """

    name = "gptq"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    _: KW_ONLY
    damping: float = 0.01
    block_size: int = 128
    act_order: bool = False
    clip: Clip = "none"

    def __post_init__(self) -> None:
        check_damping(self.damping)
        check_int("block_size", self.block_size, 1)
        if not isinstance(self.act_order, bool):
            raise TypeError(f"act_order: expected a bool, got {type(self.act_order).__name__}")
        check_clip(self.clip)

    def round(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Rounded]:
        assert stats is not None
        results, raised = {}, {}
        for fqn, layer in layers.items():
            gram = finite_gram(fqn, stats[fqn])
            dtype = torch.promote_types(layer.weight.dtype, gram.dtype)
            weight, gram = layer.matrix().to(dtype), gram.to(dtype)
            scale = scales_of(layer, self.clip)
            nearest = rounded(weight, scale)
            integers, damping = self._settled(weight, gram, scale)
            if damping > self.damping:
                raised[fqn] = damping
            errors = [squared_outputs(weight - products(q, scale, dtype), gram) for q in (integers, nearest)]
            results[fqn] = Rounded(torch.where(errors[0] < errors[1], integers, nearest), scale)
        if raised:
            taken = ", ".join(f"{fqn!r} by {damping:g}" for fqn, damping in raised.items())
            message = f"damping: expected {self.damping:g} to make Gram matrices regular, damped {taken}"
            warnings.warn(message, UserWarning, stacklevel=CALLER_OF_PRUNE)
        warn_of_few_tokens(layers, stats)
        return results

    def _settled(self, weight: Tensor, gram: Tensor, scale: Tensor) -> tuple[Tensor, float]:
        """int8 [groups, n, k], and the damping it needed."""
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        order = diagonal.argsort(dim=-1, descending=True, stable=True) if self.act_order else None
        if order is not None:
            weight = weight.gather(2, order[:, None].expand_as(weight))
            gram = gram.gather(1, order[..., None].expand_as(gram)).gather(2, order[:, None].expand_as(gram))
        factor, damping = inverse_factor(gram, self.damping)
        integers = gptq(weight, factor.to(weight.dtype), scale, block_size=self.block_size)
        if order is not None:
            integers = torch.empty_like(integers).scatter_(2, order[:, None].expand_as(integers), integers)
        return integers, damping


def gptq(weight: Tensor, factor: Tensor, scale: Tensor, *, block_size: int) -> Tensor:
    """The integers, int8 [groups, n, k].

    weight      [groups, n, k], float32 or float64; where it is zero, so is the integer
    factor      [groups, k, k], same dtype: U of `hessian.inverse_factor`
    scale       [groups, n] float32
    block_size  see `settle_columns`
    """
    may_fill = filled(weight).mT.contiguous()
    integers = torch.zeros_like(may_fill, dtype=torch.int8)

    def settle(columns: Tensor, i: int) -> Tensor:
        column = columns[:, i].masked_fill(~may_fill[:, i], 0)[..., None]
        integers[:, i] = rounded(column, scale)[..., 0]
        return products(integers[:, i, :, None], scale, weight.dtype)[..., 0]

    settle_columns(weight, factor, settle, block_size=block_size)
    return integers.mT.contiguous()
