"""Which layouts are worth trying, by device, dtype, tokens and sparsity, and between which token counts."""

from __future__ import annotations

import torch

from sparseinfer import ops
from sparseinfer.formats._checks import DTYPE_NAMES
from sparseinfer.ops import Layout
from sparseinfer.ops.cuda_layouts import CUDA_LIMITS
from sparseinfer.ops.cuda_tiles import TILED

# Below this sparsity no layout has beaten the best dense at any token count, so none is tried.
MIN_SPARSITY = 0.3

# Upper ends of the token buckets of a CPU, where other tiles begin.
CPU_LIMITS = (4, ops.FEW_TOKENS, 47, None)
GPU_LIMITS = CUDA_LIMITS

# Sparsities at which a packing of scattered zeros in 16 bits may be fastest on a GPU: by the bytes and
# instructions of cuda_model.py, not measured.
HALF_BOUNDS = {"bitmap": (0.2, 0.85), "delta4": (0.6, 0.9), "delta8": (0.8, 1.0), "csr": (0.95, 1.0)}

# A number of tokens for which kernels take the tiles that convolutions need.
_MANY_TOKENS = ops.FEW_TOKENS + 1


def cpu_layouts(dtype: torch.dtype, x_dtype: torch.dtype, tokens: int, sparsity: float) -> tuple[Layout, ...]:
    """Those that may be fastest for weights of `dtype` and activations that are rounded to `x_dtype`."""
    return tuple(layout for layout in ops.layouts(dtype, x_dtype, tokens) if ops.may_win(layout, sparsity))


def cpu_conv_layouts(tokens: int, sparsity: float) -> tuple[Layout, ...]:
    """Of a convolution: the kernels for many tokens, in float32."""
    return cpu_layouts(torch.float32, torch.float32, max(tokens, _MANY_TOKENS), sparsity)


def cpu_conv_kernel(layout: Layout) -> str:
    """Base name of the kernel that convolves by this layout."""
    return layout.kernel(_MANY_TOKENS)


def every_cpu_layout(dtype: torch.dtype, x_dtype: torch.dtype) -> tuple[Layout, ...]:
    """For any number of tokens and any sparsity."""
    layouts = [layout for m in (1, 8, 16, 64) for layout in ops.layouts(dtype, x_dtype, m)]
    return tuple(dict.fromkeys((*layouts, ops.compact_layout(dtype, x_dtype))))


def gpu_min_sparsity(dtype: torch.dtype) -> float:
    """Below it no layout of scattered zeros is tried."""
    return MIN_SPARSITY if dtype == torch.float32 else min(low for low, _ in HALF_BOUNDS.values())


def gpu_layouts(dtype: torch.dtype, sparsity: float) -> tuple[Layout, ...]:
    """Those for zeros anywhere that may be fastest on a GPU; at least one."""
    storage = DTYPE_NAMES[dtype]
    fit = [name for name, (low, high) in HALF_BOUNDS.items() if low <= sparsity <= high]
    packings = ["csr"] if dtype == torch.float32 else fit or ["bitmap"]
    return tuple(Layout(packing, storage, device="cuda") for packing in packings)


def decompresses(layout: Layout, tokens: int) -> bool:
    """Whether a GPU writes the weight out densely for so many tokens, for cuBLAS to multiply by it."""
    return layout.kernel(tokens).startswith("decompress")


def tile_tokens(layout: Layout, tokens: int) -> int:
    """How many tokens the kernel of a tiled layout multiplies at once."""
    return int(layout.kernel(tokens).rsplit("_t", 1)[1])


def is_tiled(layout: Layout) -> bool:
    return layout.packing in TILED
