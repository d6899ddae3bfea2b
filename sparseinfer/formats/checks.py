"""Input checks shared by formats and operators. Every message reads `name: expected X, got Y (hint)`."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

INDEX_DTYPES = (torch.int64, torch.int32)
INT32_MAX = 2**31 - 1


class WrongDtype(TypeError, RuntimeError):
    """A TypeError that is also a RuntimeError, which torch's own layers raise."""


def on_cpu(name: str, t: object) -> Tensor:
    """Returns t. TypeError unless it is a tensor, ValueError unless its data is in CPU memory."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(t).__name__}")
    if t.device.type != "cpu":
        hint = "materialise it first" if t.device.type == "meta" else "move it with .cpu() first"
        raise ValueError(f"{name}: expected a tensor on cpu, got {t.device} ({hint})")
    return t


def address(name: str, t: Tensor) -> int:
    """Address of t's elements, for native code. ValueError unless they are contiguous CPU memory."""
    if not t.is_cpu or t.layout != torch.strided or not t.is_contiguous():
        got = f"{t.layout} on {t.device}" + (
            f" with stride {t.stride()}" if t.layout == torch.strided else ""
        )
        raise ValueError(f"{name}: expected a contiguous tensor on the CPU, got {got}")
    return t.data_ptr()


def plain(name: str, t: object, dtypes: Sequence[torch.dtype], ndim: int) -> Tensor:
    """t detached and contiguous, copied only if necessary.

    TypeError: not a tensor, not strided, or a dtype outside `dtypes`. ValueError: not on cpu, another rank.
    """
    t = on_cpu(name, t)
    if t.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {t.layout} (from_torch takes sparse tensors)")
    if t.dtype not in dtypes:
        wanted = " or ".join(_short(dtype) for dtype in dtypes)
        hint = f"convert it with .to({dtypes[0]})"
        raise TypeError(f"{name}: expected dtype {wanted}, got {_short(t.dtype)} ({hint})")
    if t.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimension{'s' * (ndim != 1)}, got shape {tuple(t.shape)}")
    return t.detach().resolve_neg().contiguous()


def pair(name: str, sizes: object, *, minimum: int) -> tuple[int, int]:
    """sizes as two Python integers, each at least `minimum`; anything else is a TypeError or a ValueError."""
    try:
        first, second = (operator.index(size) for size in sizes)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected two integers, got {sizes!r}") from None
    if first < minimum or second < minimum:
        raise ValueError(f"{name}: expected two integers >= {minimum}, got {(first, second)}")
    return first, second


def length(name: str, t: Tensor, expected: int, meaning: str) -> None:
    """ValueError unless the vector t has `expected` elements; `meaning` says where that number comes from."""
    if t.numel() != expected:
        raise ValueError(f"{name}: expected {expected} elements ({meaning}), got {t.numel()}")


def blocks_divide(shape: tuple[int, int], block_size: tuple[int, int]) -> tuple[int, int]:
    """The grid (n / r, k / c) of blocks. ValueError unless r divides n and c divides k."""
    (n, k), (r, c) = shape, block_size
    if n % r or k % c:
        raise ValueError(f"block_size: expected (r, c) that divides the shape {(n, k)}, got {(r, c)}")
    return n // r, k // c


def wide_indices(name: str, indices: Tensor) -> Tensor:
    """int32 or int64 indices as an int64 copy."""
    return plain(name, indices, INDEX_DTYPES, 1).to(torch.int64, copy=True)


def narrow_indices(name: str, indices: Tensor, columns: int) -> Tensor:
    """int32 or int64 column indices [nnz] as an int32 copy.

    ValueError if one lies outside [0, columns): narrowing such an index could wrap it into the valid range.
    """
    indices = plain(name, indices, INDEX_DTYPES, 1)
    if indices.numel():
        low, high = (int(bound) for bound in indices.aminmax())
        if low < 0 or high >= min(columns, INT32_MAX):
            got = low if low < 0 else high
            raise ValueError(f"{name}: expected values in [0, {min(columns, INT32_MAX)}), got {got}")
    return indices.to(torch.int32, copy=True)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
