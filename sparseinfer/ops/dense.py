"""The dense implementations that torch offers for a linear layer; sparse ones are compared with the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DenseLinear = Callable[[Tensor], Tensor]

PLAIN, PREPACKED, SEMI_STRUCTURED = "F.linear", "onednn-prepacked", "2:4"
# x and the weight rounded to bfloat16; the result has the dtype of x.
PREPACKED_BF16 = "onednn-prepacked bfloat16"


@dataclass(frozen=True)
class DenseWay:
    """kind      what it is called in reports
    on_cpu    whether a CPU may have it
    rearranges  holds the weight in another form, bit for bit
    rounds_to   holds the weight rounded, and rounds x
    """

    kind: str
    on_cpu: bool = True
    rearranges: bool = False
    rounds_to: torch.dtype | None = None


# Every way that a layer may stay dense in. Plans, reports and files of models take from it what they allow.
DENSE_WAYS = {
    PLAIN: DenseWay("dense"),
    PREPACKED: DenseWay("prepacked", rearranges=True),
    SEMI_STRUCTURED: DenseWay(SEMI_STRUCTURED, on_cpu=False, rearranges=True),
    PREPACKED_BF16: DenseWay("prepacked", rounds_to=torch.bfloat16),
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
