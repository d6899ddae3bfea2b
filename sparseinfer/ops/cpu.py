"""The operator on the CPU: checks with messages, memory, then one native call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.kernels import kernel_id
from sparseinfer.ops.packing import DTYPE_NAMES, DTYPES, check_tensor
from sparseinfer.ops.plan import parse_plan
from sparseinfer.ops.schema import library

ACTIVATIONS = {name: number for number, name in enumerate(core.activations)}
X_DTYPES = {dtype: core.dtypes.index(name) for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Trusted:
    """What the native check found in a packing, and which state of its tensor it saw."""

    address: int
    nbytes: int
    version: int
    n: int
    k: int
    dtype: torch.dtype

    def fits(self, packed: Tensor) -> bool:
        same = self.address == packed.data_ptr() and self.nbytes == packed.numel()
        return same and self.version == _version(packed)


# A packing is checked whole when it is first used and again when its tensor was written to. The verdict is
# kept on the tensor object: a clone is another object, and an address alone may have been recycled.
_VERDICT = "_sparseinfer_trusted"


def _version(packed: Tensor) -> int:
    return -1 if packed.is_inference() else packed._version


def _check(packed: Tensor) -> Trusted:
    check_tensor(packed)
    address, nbytes = packed.data_ptr(), packed.numel()
    core.check_packing(address, nbytes)
    header = core.describe(address, nbytes)
    dtype = DTYPES[header["dtype"]]
    trusted = Trusted(address, nbytes, _version(packed), header["n"], header["k"], dtype)
    setattr(packed, _VERDICT, trusted)
    return trusted


def linear(
    x: Tensor, packings: list[Tensor], bias: Tensor | None, n: int, plan: str, activation: str
) -> Tensor:
    """y [..., n] = activation(x [..., k] · Wᵀ + bias [n]), with W [n, k] in the packing that `plan` names.

    Any leading dimensions and strides of x. ValueError and TypeError say what was expected.
    """
    return run(x, packings, bias, n, plan, activation)


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
    """`linear`; `parts` > 0 computes that many row ranges one after another instead of on torch's threads."""
    if x.ndim == 0:
        raise ValueError("x: expected at least 1 dimension, got a scalar")
    k = x.shape[-1]
    rows = x if x.ndim == 2 else x.reshape(-1, k) if k else x.reshape(x.shape[:-1].numel(), 0)
    if k and rows.stride(1) != 1 and rows.shape[0]:
        rows = rows.contiguous()
    m = rows.shape[0]
    buckets = parse_plan(plan)
    bucket = next(b for b in buckets if b.max_tokens is None or m <= b.max_tokens)
    if bucket.packing >= len(packings):
        raise ValueError(
            f"packings: expected at least {bucket.packing + 1} for plan {plan}, got {len(packings)}"
        )
    packed = packings[bucket.packing]

    if x.device.type != "cpu":
        raise ValueError(f"x: expected a tensor on the CPU, got one on {x.device}")
    trusted = getattr(packed, _VERDICT, None)
    if trusted is None or not trusted.fits(packed):
        trusted = _check(packed)
    x_dtype = X_DTYPES.get(x.dtype)
    if x_dtype is None:
        raise TypeError(f"x: expected dtype torch.float32, torch.bfloat16 or torch.float16, got {x.dtype}")
    if k != trusted.k:
        raise ValueError(
            f"x: expected {trusted.k} in_features in the last dimension, got shape {tuple(x.shape)}"
        )
    if n != trusted.n:
        raise ValueError(f"n: expected {trusted.n} out_features as packed, got {n}")
    if bias is not None:
        _check_bias(bias, n)
        bias = bias.to(torch.float32).contiguous()
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")

    y = torch.empty((*x.shape[:-1], n), dtype=x.dtype)
    core.spmm(
        kernel_id(bucket.kernel),
        rows.data_ptr(),
        x_dtype,
        m,
        rows.stride(0),
        packed.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        n,
        ACTIVATIONS[activation],
        parts,
    )
    return y


def _check_bias(bias: Tensor, n: int) -> None:
    if bias.shape != (n,):
        raise ValueError(f"bias: expected shape ({n},), got {tuple(bias.shape)}")
    if bias.dtype not in X_DTYPES:
        raise TypeError(f"bias: expected dtype torch.float32, torch.bfloat16 or torch.float16, got {bias.dtype}")
    if bias.device.type != "cpu":
        raise ValueError(f"bias: expected a tensor on the CPU, got one on {bias.device}")


def register() -> None:
    library.impl("linear", linear, "CPU")
