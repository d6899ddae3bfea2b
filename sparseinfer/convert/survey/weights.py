"""Reads the weights of a module as its next forward would compute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseinfer import ops
from sparseinfer._int8 import on_grid, rounded, row_peaks, row_scales, scale_name
from sparseinfer.formats.checks import INT32_MAX
from sparseinfer.formats.dtypes import VALUE_DTYPES

# A weight lies "in blocks" if more of its 4x4 blocks are empty than this, and than 1.5 times what zeros at
# random would leave empty. Both chosen, not measured: the word is for reports, no plan depends on it.
_MIN_EMPTY_BLOCKS = 0.05
_ABOVE_RANDOM = 1.5

# Rows of a block that kernels for blocks gain from: they multiply 16 weights as one vector.
_BLOCK_ROWS = 16
_BLOCK_COLUMNS = (64, 32, 16, 8, 4, 2, 1)
# Blocks are stored whole; they may hold so many times the weights that are not zero. Chosen, not measured:
# zeros that a pattern of blocks made leave none, scattered ones leave nearly all of a block.
_BLOCK_FILLING = 1.25


@dataclass(frozen=True, eq=False)
class Weights:
    """weight [n, k] and bias [n] of a Linear, detached.

    scales   [n] of a weight of int8; of another those that `quantize_` left, whose multiples it may be
    """

    weight: Tensor
    bias: Tensor | None
    scales: Tensor | None = None

    @property
    def on_gpu(self) -> bool:
        return self.weight.is_cuda

    @cached_property
    def sparsity(self) -> float:
        """Fraction of the weight's elements that are zero."""
        return 1.0 - int((self.weight != 0).count_nonzero()) / self.weight.numel()

    @cached_property
    def empty_blocks(self) -> float:
        """Fraction of 4x4 blocks that hold only zeros: tells blocks from unstructured zeros."""
        n, k = (size // 4 * 4 for size in self.weight.shape)
        if not n or not k:
            return 0.0
        kept = (self.weight[:n, :k] != 0).view(n // 4, 4, k // 4, 4).any(3).any(1)
        return 1.0 - int(kept.count_nonzero()) / kept.numel()

    @cached_property
    def block(self) -> tuple[int, int] | None:
        """The largest blocks (16, c) that are zero or full, but for a few zeros; None: there are none."""
        n, k = self.weight.shape
        if n % _BLOCK_ROWS or not 0 < self.sparsity < 1:
            return None
        columns = (self.weight != 0).view(n // _BLOCK_ROWS, _BLOCK_ROWS, k).any(1)  # of 16 rows
        kept = int(columns.count_nonzero())
        if kept * _BLOCK_ROWS > _BLOCK_FILLING * (1 - self.sparsity) * self.weight.numel():
            return None
        wide = (c for c in _BLOCK_COLUMNS if k % c == 0)
        return next(
            (_BLOCK_ROWS, c)
            for c in wide
            if int(columns.view(len(columns), k // c, c).any(2).count_nonzero()) * c == kept
        )

    @property
    def pattern(self) -> str:
        """How the zeros lie: "none", "rows", "blocks" or "unstructured"."""
        if self.sparsity == 0:
            return "none"
        kept_rows = int((self.weight != 0).any(1).count_nonzero()) * self.weight.shape[1]
        if kept_rows <= (1 - self.sparsity) * self.weight.numel():
            return "rows"
        at_random = self.sparsity**16  # of 16 weights, all zero
        in_blocks = self.empty_blocks > max(_MIN_EMPTY_BLOCKS, _ABOVE_RANDOM * at_random)
        return "blocks" if in_blocks else "unstructured"

    def rounded(self, dtype: torch.dtype) -> Weights | str:
        """The same with the weight rounded to another dtype, or why that is impossible."""
        if dtype == torch.int8:
            return self._rounded_to_int8()
        weight = self.weight.to(dtype)
        if not torch.equal(weight.isfinite(), self.weight.isfinite()):
            return f"its weight exceeds the range of {dtype}"
        return Weights(weight, self.bias)

    def _rounded_to_int8(self) -> Weights | str:
        """By the scales that the weight is made of, else by the largest magnitude of each row / 127."""
        if not bool(self.weight.isfinite().all()):
            return "its weight has values that int8 cannot hold"
        found = None if self.scales is None else on_grid(self.weight, self.scales)
        if found is None:
            scales = row_scales(row_peaks(self.weight).float(), self.weight.dtype)
            found = rounded(self.weight, scales), scales
        integers, scales = found
        if int(integers.abs().sum(1, dtype=torch.int64).max()) * 255 > INT32_MAX:
            return "its rows are too long for 32-bit sums of int8"
        return Weights(integers, self.bias, scales)

    def copied(self) -> Weights:
        return Weights(self.weight.clone(), None if self.bias is None else self.bias.clone(), self.scales)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


def read(
    module: nn.Module,
    weight_name: str = "weight",
    bias_name: str = "bias",
    *,
    as_matrix: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Weights | str:
    """The weights of a module's next forward, or why no kernel supports them."""
    weight, bias = _effective(module, weight_name), _effective(module, bias_name)
    if weight is None:
        return "it has no weight"
    for t in (weight, bias):
        if t is None:
            continue
        if type(t) is not Tensor or t.layout != torch.strided:
            return f"it holds a {type(t).__name__} of layout {t.layout}, not a plain tensor"
        if reason := _device_refusal(t.device):
            return f"it is on {t.device}: {reason}"
        if t.dtype not in VALUE_DTYPES:
            *others, last = map(str, VALUE_DTYPES)
            return f"its dtype is {t.dtype}; the kernels take {', '.join(others)} and {last}"
    if bias is not None and bias.dtype != weight.dtype:
        return f"its weight is {weight.dtype} and its bias {bias.dtype}"
    if not weight.numel():
        return "its weight has no elements"
    weight = as_matrix(weight)
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return "its weight and bias are not [n, k] and [n]"
    scales = module._buffers.get(scale_name(weight_name))
    return Weights(weight, bias, scales if scales is not None and scales.shape == weight.shape[:1] else None)


def _device_refusal(device: torch.device) -> str | None:
    if device.type == "cuda":
        return ops.cuda_refusal(device.index)
    # Weights on meta are those of a file, which are read when their layer is made (convert/reload.py).
    return None if device.type in ("cpu", "meta") else "the kernels run on cpu and cuda"


def class_of(module: nn.Module) -> type[nn.Module]:
    """The module's class before parametrization."""
    return parametrize.type_before_parametrizations(module)


@torch.no_grad()
def _effective(module: nn.Module, name: str) -> Tensor | None:
    """`module.weight` or `module.bias` as the next forward would compute it.

    torch.nn.utils.prune does that in a hook, `weight_orig * weight_mask`, so the attribute may be stale.
    """
    original, mask = module._parameters.get(f"{name}_orig"), module._buffers.get(f"{name}_mask")
    if original is not None and mask is not None:
        return (original * mask).detach()
    t: Tensor | None = getattr(module, name, None)
    return None if t is None else t.detach()
