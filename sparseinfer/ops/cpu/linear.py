"""The linear operator on the CPU: checks arguments, allocates y, and makes one native call."""

from __future__ import annotations

from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.arguments import as_rows
from sparseinfer.ops.cpu.call import bias_argument, numbers
from sparseinfer.ops.cpu.trust import address
from sparseinfer.ops.plan import check_packings


def run(
    x: Tensor,
    packings: list[Tensor],
    bias: Tensor | None,
    n: int,
    plan: str,
    activation: str,
    *,
    parts: int = 0,
) -> Tensor:
    """y [..., n] = activation(x [..., k] · Wᵀ + bias [n]), with W [n, k] in the packing that `plan` names.

    Any leading dimensions and strides of x; y has the dtype of x. A packing of bf16 pairs also takes fp32 x,
    rounded to bf16. `parts` > 0 computes that many ranges of rows sequentially instead of on torch's threads.
    ValueError or TypeError: invalid arguments.
    """
    # These lines are what a call of a small layer costs: an attribute of a tensor is a tenth of a
    # microsecond, torch.empty two.
    shape = x.shape
    rows = x if len(shape) == 2 else as_rows(x, shape)
    m, k = rows.shape
    dtype = x.dtype
    index, kernel, dtype_number, number = numbers(plan, m, dtype, activation)
    if index >= len(packings):
        check_packings(plan, index + 1, packings)
    y = x.new_empty((m, n) if rows is x else (*shape[:-1], n))
    stride, step = rows.stride()
    if step != 1 and m and k:
        rows = rows.contiguous()
        stride = k
    if bias is None:
        bias_address = bias_dtype = 0
    else:
        bias, bias_address, bias_dtype = bias_argument(bias, n, dtype)
    core.spmm(
        kernel,
        (rows.data_ptr(), dtype_number, m, k, stride),
        address(packings[index]),
        (bias_address, bias_dtype, number),
        (y.data_ptr(), n),
        parts,
    )
    return y
