"""The linear operator on the CPU: checks with messages, memory, then one native call."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.arguments import (
    as_rows,
    check_bias_shape,
    number_of_activation,
    number_of_dtype,
    readable_bias,
)
from sparseinfer.ops.cpu.kernels import chosen
from sparseinfer.ops.cpu.trust import address
from sparseinfer.ops.names import DTYPE_NUMBERS
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

    Any leading dimensions and strides of x; y has the dtype of x. A packing of bf16 pairs takes fp32 x too,
    rounded to bf16. `parts` > 0 computes that many ranges one after another instead of on torch's threads.
    ValueError and TypeError say what was expected.
    """
    # These lines are what a call of a small layer costs: an attribute of a tensor is a tenth of a
    # microsecond, torch.empty two.
    shape = x.shape
    rows = x if len(shape) == 2 else as_rows(x)
    m, k = rows.shape
    index, kernel = chosen(plan, m)
    if index >= len(packings):
        check_packings(plan, index + 1, packings)
    dtype = x.dtype
    dtype_number = number_of_dtype(dtype)
    y = x.new_empty((m, n) if rows is x else (*shape[:-1], n))
    stride, step = rows.stride()
    if step != 1 and m and k:
        rows = rows.contiguous()
        stride = k
    number = number_of_activation(activation)
    bias, bias_address, bias_dtype = bias_argument(bias, n, dtype)
    core.spmm(
        kernel,
        rows.data_ptr(),
        dtype_number,
        m,
        k,
        stride,
        address(packings[index]),
        bias_address,
        bias_dtype,
        y.data_ptr(),
        n,
        number,
        parts,
    )
    return y


def bias_argument(bias: Tensor | None, n: int, x_dtype: torch.dtype) -> tuple[Tensor | None, int, int]:
    """A bias [n] that kernels can read, to be held during the call; its address; its dtype's number."""
    if bias is None:
        return None, 0, 0
    if bias.dtype is not torch.float32 or bias.shape != (n,) or not bias.is_cpu or not bias.is_contiguous():
        check_bias_shape(bias, n)
        if not bias.is_cpu:
            raise ValueError(f"bias: expected a tensor on the CPU, got one on {bias.device}")
        bias = readable_bias(bias, x_dtype)
        return bias, bias.data_ptr(), DTYPE_NUMBERS[bias.dtype]
    return bias, bias.data_ptr(), 0
