"""The dense implementations that torch offers for a linear layer; sparse ones are compared with the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer._native import core

DenseLinear = Callable[[Tensor], Tensor]

PLAIN, PREPACKED, SEMI_STRUCTURED = "F.linear", "onednn-prepacked", "2:4"
# x and the weight rounded to bfloat16; the result has the dtype of x.
PREPACKED_BF16 = "onednn-prepacked bfloat16"
# The weight rounded to int8 by rows, each token of x to 8 bits, as by the kernels of storage "i8".
PREPACKED_INT8 = "onednn-prepacked int8"


@dataclass(frozen=True)
class DenseWay:
    """kind      what it is called in reports
    on_cpu    whether a CPU may have it
    rounds_to   holds the weight rounded, and rounds x
    """

    kind: str
    on_cpu: bool = True
    rounds_to: torch.dtype | None = None


# Every way that a layer may stay dense in. Plans, reports and files of models take from it what they allow.
DENSE_WAYS = {
    PLAIN: DenseWay("dense"),
    PREPACKED: DenseWay("prepacked"),
    SEMI_STRUCTURED: DenseWay(SEMI_STRUCTURED, on_cpu=False),
    PREPACKED_BF16: DenseWay("prepacked", rounds_to=torch.bfloat16),
    PREPACKED_INT8: DenseWay("prepacked", rounds_to=torch.int8),
}

_PREPACK_DTYPES = (torch.float32, torch.bfloat16)


def prepack_available(weight: Tensor) -> bool:
    """Whether this torch can hold the weight [n, k] in oneDNN's own blocked layout."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and weight.dtype in _PREPACK_DTYPES
        and weight.device.type == "cpu"
        and weight.numel() > 0
    )


def semi_structured_available(weight: Tensor) -> bool:
    """Whether weight [n, k] has 2:4 sparsity and is on a GPU whose tensor cores support it.

    torch can then compress the weight for cuSPARSELt or CUTLASS.
    """
    return (
        weight.is_cuda
        and hasattr(torch.sparse, "to_sparse_semi_structured")
        and torch.cuda.get_device_capability(weight.device) >= (8, 0)
        and is_semi_structured(weight)
    )


def is_semi_structured(weight: Tensor) -> bool:
    """Whether zeros, dtype and shape of weight [n, k] are what 2:4 products support."""
    n, k = weight.shape
    if weight.dtype not in (torch.bfloat16, torch.float16) or n % 64 or k % 64 or not weight.numel():
        return False
    return int((weight.view(-1, 4) != 0).sum(1).max()) <= 2


def prepack(weight: Tensor, bias: Tensor | None = None, *, tokens: int | None = None) -> DenseLinear:
    """A function x [..., k] -> x · weightᵀ + bias; reorders the weight [n, k] once into oneDNN's layout.

    `tokens` is the number of rows to optimize the layout for; other numbers work too. torch's own compiler
    does the same with a frozen linear. RuntimeError if `prepack_available(weight)` is false.
    """
    if not prepack_available(weight):
        raise RuntimeError(
            "weight: expected a non-empty float32 or bfloat16 tensor on cpu and a torch with oneDNN, "
            f"got {weight.dtype} {tuple(weight.shape)} on {weight.device} (see prepack_available)"
        )
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), tokens)
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda x: linear(x, packed, bias, "none", [], "")


def multiplies_bf16(weight: Tensor) -> bool:
    """Whether this torch can hold the weight [n, k] in bfloat16 and this CPU multiply by it then."""
    return prepack_available(weight) and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def prepack_bf16(weight: Tensor, bias: Tensor | None = None, *, tokens: int | None = None) -> DenseLinear:
    """`prepack` for a weight in bfloat16: x is rounded to it, and the result has the dtype of x."""
    linear = prepack(weight, bias, tokens=tokens)
    return lambda x: linear(x.to(torch.bfloat16)).to(x.dtype)


def multiplies_int8(weight: Tensor) -> bool:
    """Whether this torch can multiply by a float32 weight [n, k] in int8, with 32-bit sums on this CPU.

    Without instructions for that oneDNN adds pairs of products in 16 bits, which may not hold them.
    """
    return (
        prepack_available(weight)
        and weight.dtype == torch.float32
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
        and "avx512vnni" in core.isa_levels()
    )


def prepack_int8(integers: Tensor, tokens: int | None = None) -> Tensor:
    """int8 [n, k] in oneDNN's layout for `linear_int8`; its `to_dense()` is their transpose [k, n]."""
    n, k = integers.shape
    packed: Tensor = torch.ops.onednn.qlinear_prepack(integers.contiguous(), [tokens or n, k])
    return packed


def linear_int8(x: Tensor, packed: Tensor, scales: Tensor, sums: Tensor) -> Tensor:
    """x [..., k] · Wᵀ with x float32, rounded to 8 bits by tokens (`reference.quantize_tokens`); y float32.

    packed  W's integers by `prepack_int8`
    scales  float32 [n] of its rows
    sums    float32 [n] of the integers of each row

    A token with a value that is not finite gives NaN.
    """
    integers, zero, scale = quantized(x.reshape(-1, x.shape[-1]))
    n = len(scales)
    one, nothing = torch.ones_like(scales), torch.zeros_like(scales, dtype=torch.int64)
    y = torch.ops.onednn.qlinear_pointwise(
        integers, 1.0, 0, packed, one, nothing, None, 1.0, 0, torch.float32, "none", [], ""
    )
    y = y.addcmul_(zero, sums, value=-1).mul_(scales).mul_(scale)
    return y.view(*x.shape[:-1], n)


def quantized(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 q [..., k], and zero and scale of each token, float32 [..., 1]: x ≈ scale * (q - zero)."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high.double() - low.double()) / 255.0).to(torch.float32)
    scale = torch.where(scale.isfinite(), scale.clamp(min=torch.finfo(torch.float32).tiny), torch.nan)
    inverse = 1.0 / scale
    zero = (0.5 - low * inverse).floor()
    return ((x * inverse).round() + zero).clamp(0, 255).to(torch.uint8), zero, scale


def dense_names(weight: Tensor) -> tuple[str, ...]:
    """Names of the `dense_candidates`."""
    return (PLAIN, PREPACKED) if prepack_available(weight) else (PLAIN,)


def dense_candidates(
    weight: Tensor, bias: Tensor | None = None, *, tokens: int | None = None
) -> dict[str, DenseLinear]:
    """All dense implementations by name; the best dense is the fastest of them.

    weight [n, k], bias [n] or None; `tokens` as in `prepack`. Each is a function x [..., k] -> [..., n].
    """
    ways: dict[str, DenseLinear] = {PLAIN: lambda x: F.linear(x, weight, bias)}
    if prepack_available(weight):
        ways[PREPACKED] = prepack(weight, bias, tokens=tokens)
    return ways
