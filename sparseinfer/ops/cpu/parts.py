"""Computes several Linears of one input as one matrix on the CPU, in one native call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.arguments import as_rows
from sparseinfer.ops.cpu.call import bias_argument, numbers
from sparseinfer.ops.cpu.trust import address
from sparseinfer.ops.plan import check_packings


def linear_parts(
    x: Tensor,
    packings: Sequence[Tensor],
    bias: Tensor | None,
    sizes: Sequence[int],
    wanted: Sequence[bool],
    plan: str,
) -> list[Tensor | None]:
    """x [..., k] · Wᵀ + bias [n], split by rows of W: one contiguous y [..., size] each, bit-identical.

    W [n, k] is in the packing that `plan` names, n the sum of `sizes`. Parts that are not `wanted` are not
    computed and are None. x is on the CPU; otherwise like `torch.ops.sparseinfer.linear`.
    """
    if len(sizes) != len(wanted) or not sizes or min(sizes) < 1:
        got = f"{list(sizes)} for {len(wanted)}"
        raise ValueError(f"sizes: expected a positive size for each that may be wanted, got {got}")
    if not x.is_cpu:
        raise ValueError(f"x: expected a tensor on the CPU, got one on {x.device}")
    rows = x if x.dim() == 2 else as_rows(x, x.shape)
    m, k = rows.shape
    index, kernel, number, _ = numbers(plan, m, x.dtype, "none")
    check_packings(plan, index + 1, packings)
    stride, step = rows.stride()
    if step != 1 and m and k:
        rows, stride = rows.contiguous(), k
    bias, bias_address, bias_dtype = bias_argument(bias, sum(sizes), x.dtype)
    lead = x.shape[:-1]
    ys = [x.new_empty((*lead, size)) if want else None for size, want in zip(sizes, wanted, strict=True)]
    core.spmm_parts(
        kernel,
        (rows.data_ptr(), number, m, k, stride),
        address(packings[index]),
        (bias_address, bias_dtype),
        [(0 if y is None else y.data_ptr(), size) for y, size in zip(ys, sizes, strict=True)],
    )
    return ys
