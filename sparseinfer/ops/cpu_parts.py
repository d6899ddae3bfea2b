"""Several Linears of one input as one matrix, on the CPU: one native call, a result of its own for each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats._checks import WrongDtype
from sparseinfer.ops.cpu import X_DTYPES, address, checked_bias, choices


def linear_parts(
    x: Tensor,
    packings: Sequence[Tensor],
    bias: Tensor | None,
    sizes: Sequence[int],
    wanted: Sequence[bool],
    plan: str,
) -> list[Tensor | None]:
    """x [..., k] · Wᵀ + bias [n], cut into the rows of W: y [..., size] for each, contiguous, the same bits.

    W [n, k] is in the packing that `plan` names, n the sum of `sizes`. Those that are not `wanted` are not
    computed and are None. x is on the CPU; else as `torch.ops.sparseinfer.linear`.
    """
    if len(sizes) != len(wanted) or not sizes or min(sizes) < 1:
        got = f"{list(sizes)} for {len(wanted)}"
        raise ValueError(f"sizes: expected a positive size for each that may be wanted, got {got}")
    if not x.is_cpu:
        raise ValueError(f"x: expected a tensor on the CPU, got one on {x.device}")
    if not x.dim():
        raise ValueError("x: expected at least 1 dimension, got a scalar")
    *lead, k = x.shape
    rows = x if len(lead) == 1 else x.reshape(x.shape[:-1].numel(), k)
    m = rows.shape[0]
    number = X_DTYPES.get(x.dtype)
    if number is None:
        got = f"{x.dtype}"
        raise WrongDtype(f"x: expected dtype torch.float32, torch.bfloat16 or torch.float16, got {got}")
    for choice in choices(plan):
        if m <= choice[0]:
            break
    _, index, kernel = choice
    if index >= len(packings):
        raise ValueError(f"packings: expected at least {index + 1} for plan {plan}, got {len(packings)}")
    stride, step = rows.stride()
    if step != 1 and m and k:
        rows, stride = rows.contiguous(), k
    bias_address = bias_dtype = 0
    if bias is not None:
        bias = checked_bias(bias, sum(sizes), x.dtype)
        bias_address, bias_dtype = bias.data_ptr(), X_DTYPES[bias.dtype]
    ys = [x.new_empty((*lead, size)) if want else None for size, want in zip(sizes, wanted, strict=True)]
    core.spmm_parts(
        kernel,
        (rows.data_ptr(), number, m, k, stride),
        address(packings[index]),
        (bias_address, bias_dtype),
        [(0 if y is None else y.data_ptr(), size) for y, size in zip(ys, sizes, strict=True)],
    )
    return ys
