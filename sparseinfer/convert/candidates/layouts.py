"""Which layouts are worth trying, by device, dtype, tokens and sparsity, and between which token counts."""

from __future__ import annotations

import torch

from sparseinfer import ops
from sparseinfer.formats._checks import DTYPE_NAMES
from sparseinfer.ops import Layout
from sparseinfer.ops.cuda_layouts import CUDA_LIMITS

# Below this sparsity no layout has beaten the best dense at any token count, so none is tried.
_MIN_SPARSITY = 0.3

# Sparsities at which a packing of scattered zeros in 16 bits may be fastest on a GPU: by the bytes and
# instructions of cuda_model.py, not measured.
HALF_BOUNDS = {"bitmap": (0.2, 0.85), "delta4": (0.6, 0.9), "delta8": (0.8, 1.0), "csr": (0.95, 1.0)}

# A number of tokens for which kernels take the tiles that convolutions need.
_MANY_TOKENS = ops.FEW_TOKENS + 1


def token_limits(device: str) -> tuple[int | None, ...]:
    """Upper ends of the token buckets, ascending, where other kernels begin; None = no limit."""
    return (4, ops.FEW_TOKENS, 47, None) if device == "cpu" else CUDA_LIMITS


def min_sparsity(device: str, dtype: torch.dtype) -> float:
    """Below it no layout of scattered zeros is tried."""
    if device == "cpu" or dtype == torch.float32:
        return _MIN_SPARSITY
    return min(low for low, _ in HALF_BOUNDS.values())


def candidate_layouts(
    device: str,
    dtype: torch.dtype,
    x_dtype: torch.dtype,
    tokens: int,
    sparsity: float,
    *,
    conv: bool = False,
) -> tuple[Layout, ...]:
    """Those for zeros anywhere that may be fastest, for activations that are rounded to `x_dtype`."""
    if device == "cuda":
        fit = [name for name, (low, high) in HALF_BOUNDS.items() if low <= sparsity <= high]
        packings = ["csr"] if dtype == torch.float32 else fit or ["bitmap"]
        return tuple(Layout(packing, DTYPE_NAMES[dtype], device="cuda") for packing in packings)
    if conv:
        dtype, x_dtype, tokens = torch.float32, torch.float32, max(tokens, _MANY_TOKENS)
    layouts = ops.layouts(dtype, x_dtype, tokens)
    return tuple(layout for layout in layouts if ops.may_win(layout, sparsity))


def all_layouts(device: str, dtype: torch.dtype, x_dtype: torch.dtype) -> tuple[Layout, ...]:
    """For any number of tokens and any sparsity, on a CPU."""
    layouts = [layout for m in (1, 8, 16, 64) for layout in ops.layouts(dtype, x_dtype, m)]
    return tuple(dict.fromkeys((*layouts, ops.compact_layout(dtype, x_dtype))))


def conv_kernel(layout: Layout) -> str:
    """Base name of the CPU's kernel that convolves by this layout."""
    return layout.kernel(_MANY_TOKENS)


def decompresses(layout: Layout, tokens: int) -> bool:
    """Whether a GPU writes the weight out densely for so many tokens, for cuBLAS to multiply by it."""
    return layout.kernel(tokens).startswith("decompress")


def tile_tokens(layout: Layout, tokens: int) -> int:
    """How many tokens the GPU's kernel of a tiled layout multiplies at once."""
    return int(layout.kernel(tokens).rsplit("_t", 1)[1])
