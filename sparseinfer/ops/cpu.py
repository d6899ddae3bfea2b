"""The operator on the CPU: checks with messages, memory, then one native call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats._checks import DTYPE_NAMES, WrongDtype
from sparseinfer.ops.kernels import kernel_id
from sparseinfer.ops.packing import check_tensor
from sparseinfer.ops.plan import parse_plan
from sparseinfer.ops.schema import library

ACTIVATIONS = {name: number for number, name in enumerate(core.activations)}
X_DTYPES = {dtype: core.dtypes.index(name) for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Trusted:
    """A packing that the native check found intact, and which state of its tensor it saw."""

    address: int
    nbytes: int
    version: int


# A packing is checked whole when it is first used and again when its tensor was written to. The verdict is
# kept on the tensor object: a clone is another object, and an address alone may have been recycled.
_VERDICT = "_sparseinfer_trusted"


def _version(packed: Tensor) -> int:
    return -1 if packed.is_inference() else packed._version


def address(packed: Tensor) -> int:
    """Where the packing lies, checked."""
    address: int = packed.data_ptr()
    trusted = getattr(packed, _VERDICT, None)
    if (
        trusted is None
        or trusted.address != address
        or trusted.nbytes != packed.numel()
        or trusted.version != _version(packed)
    ):
        check_tensor(packed)
        core.check_packing(address, packed.numel())
        setattr(packed, _VERDICT, Trusted(address, packed.numel(), _version(packed)))
    return address


@lru_cache(maxsize=4096)
def choices(plan: str) -> tuple[tuple[float, int, int], ...]:
    """(max_tokens, packing, kernel id) of each bucket."""
    found = []
    for bucket in parse_plan(plan):
        limit = inf if bucket.max_tokens is None else bucket.max_tokens
        found.append((limit, bucket.packing, kernel_id(bucket.kernel)))
    return tuple(found)


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
    if not x.is_cpu:
        # Called from plain Python; the dispatcher knows who computes on that device.
        return torch.ops.sparseinfer.linear.default(x, packings, bias, n, plan, activation)
    shape = x.shape
    if len(shape) == 2:
        rows = x
    elif shape:
        k = shape[-1]
        rows = x.reshape(-1, k) if k else x.reshape(shape[:-1].numel(), 0)
    else:
        raise ValueError("x: expected at least 1 dimension, got a scalar")
    m, k = rows.shape
    for choice in choices(plan):
        if m <= choice[0]:
            break
    _, index, kernel = choice
    if index >= len(packings):
        raise ValueError(f"packings: expected at least {index + 1} for plan {plan}, got {len(packings)}")
    dtype = x.dtype
    dtype_number = X_DTYPES.get(dtype)
    if dtype_number is None:
        raise WrongDtype(f"x: expected dtype torch.float32, torch.bfloat16 or torch.float16, got {dtype}")
    y = x.new_empty((m, n) if rows is x else (*shape[:-1], n))
    stride, step = rows.stride()
    if step != 1 and m and k:
        rows = rows.contiguous()
        stride = k
    number = ACTIVATIONS.get(activation)
    if number is None:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    bias_address = bias_dtype = 0
    if bias is not None:
        if (
            bias.dtype is not torch.float32
            or bias.shape != (n,)
            or not bias.is_cpu
            or not bias.is_contiguous()
        ):
            bias = checked_bias(bias, n, dtype)
            bias_dtype = X_DTYPES[bias.dtype]
        bias_address = bias.data_ptr()
    core.spmm(
        kernel,
        (rows.data_ptr(), dtype_number, m, k, stride),
        address(packings[index]),
        (bias_address, bias_dtype, number),
        (y.data_ptr(), n),
        parts,
    )
    return y


def checked_bias(bias: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """bias [n], contiguous, as fp32 or as `dtype`; itself where it is that."""
    if bias.shape != (n,):
        raise ValueError(f"bias: expected shape ({n},), got {tuple(bias.shape)}")
    if not bias.is_cpu:
        raise ValueError(f"bias: expected a tensor on the CPU, got one on {bias.device}")
    own = bias.dtype
    if own not in X_DTYPES:
        raise TypeError(f"bias: expected dtype torch.float32, torch.bfloat16 or torch.float16, got {own}")
    return (bias if own is torch.float32 or own is dtype else bias.to(torch.float32)).contiguous()


def of_plain_tensors(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """run, for the dispatcher, which also brings subclasses: what those make anew may lie anywhere."""

    def kernel(x: Tensor, *rest: Any) -> Tensor:
        if type(x) is not Tensor:
            with torch._C.DisableTorchFunctionSubclass():
                x = x.as_subclass(Tensor)
        return run(x, *rest)

    return kernel


def register() -> None:
    library.impl("linear", of_plain_tensors(run), "CPU")
