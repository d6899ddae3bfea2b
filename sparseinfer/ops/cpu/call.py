"""Translates a plan into the arguments of a native call, cached per plan, tokens, dtype and activation."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sparseinfer.ops.arguments import (
    check_bias_shape,
    number_of_activation,
    number_of_dtype,
    readable_bias,
)
from sparseinfer.ops.cpu.kernels import kernel_id
from sparseinfer.ops.names import DTYPE_NUMBERS
from sparseinfer.ops.plan import bucket_for

_F32 = torch.float32  # by a name of its own: a look-up less in every call
_F32_NUMBER = DTYPE_NUMBERS[_F32]


@lru_cache(maxsize=1 << 14)
def numbers(plan: str, tokens: int, x_dtype: torch.dtype, activation: str) -> tuple[int, int, int, int]:
    """(packing, kernel id, dtype of x, activation) that a plan uses for this number of tokens.

    ValueError, TypeError: an invalid plan; an unknown kernel, dtype or activation.
    """
    bucket = bucket_for(plan, tokens)
    kernel = kernel_id(bucket.kernel)
    return bucket.packing, kernel, number_of_dtype(x_dtype), number_of_activation(activation)


def bias_argument(bias: Tensor | None, n: int, x_dtype: torch.dtype) -> tuple[Tensor | None, int, int]:
    """A bias [n] that kernels can read (keep it alive during the call), its address, its dtype's number."""
    if bias is None:
        return None, 0, 0
    if bias.dtype is _F32 and bias.shape == (n,) and bias.is_cpu and bias.is_contiguous():
        return bias, bias.data_ptr(), _F32_NUMBER
    check_bias_shape(bias, n)
    if not bias.is_cpu:
        raise ValueError(f"bias: expected a tensor on the CPU, got one on {bias.device}")
    bias = readable_bias(bias, x_dtype)
    return bias, bias.data_ptr(), DTYPE_NUMBERS[bias.dtype]
