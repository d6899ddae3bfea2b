"""Ways to lay a weight out in memory, and which of them are worth measuring for a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.formats._checks import DTYPE_NAMES
from sparseinfer.ops import cuda_layouts, cuda_packing
from sparseinfer.ops.kernels import active_isa, kernels
from sparseinfer.ops.packing import PackedInfo, describe, pack
from sparseinfer.ops.plan import Bucket

# Up to here a weight is decoded for each few tokens; from here on x is cut into tiles of many.
FEW_TOKENS = 15

# Columns of x that stay in the L1 cache with a tile of at most 32 tokens of fp32.
_WIDE_PANEL = 384
_WIDE_PANEL_TOKENS = 47

# A panel of these is part of the layout; the others have one that follows from the shape.
_PANELLED = ("rowgroup", "rowlist", "bsr")


@dataclass(frozen=True)
class Layout:
    """A packing, its storage and, if it is not the packing's own choice, its panel; see `ops.pack`.

    On `device` "cuda" packings are other ones: "csr", "bitmap", "delta4", "delta8", or "bsr", whose block is
    the panel, and the storage is the weight's dtype.
    """

    packing: str
    storage: str = "f32"
    panel: int = 0
    device: str = "cpu"

    @classmethod
    def of(cls, info: PackedInfo) -> Layout:
        """The layout of a packing that exists."""
        if info.device == "cuda":
            return cls(info.packing, info.storage, info.block_size[0] if info.packing == "bsr" else 0, "cuda")
        return cls(info.packing, info.storage, info.panel if info.packing in _PANELLED else 0)

    @classmethod
    def on_cuda(cls, fmt: CSR | BSR) -> Layout:
        """The layout that CUDA kernels read a format in, unless another one is asked for."""
        storage = DTYPE_NAMES[fmt.dtype]
        if isinstance(fmt, BSR):
            return cls("bsr", storage, fmt.block_size[0], "cuda")
        return cls("csr", storage, device="cuda")

    def pack(self, fmt: CSR | BSR, isa: str = "", device: torch.device | None = None) -> Tensor:
        """The packing, on `device`; by default on the CPU or on the current GPU."""
        if self.device == "cuda":
            return cuda_packing.pack(fmt, device, self.packing)
        return pack(fmt, self.packing, storage=self.storage, isa=isa, panel=self.panel)

    def kernel(self, tokens: int = 1) -> str:
        """Base name of the kernel that reads this layout, of the few-token or of the many-token kind."""
        if self.device == "cuda":
            return cuda_layouts.kernel(self.packing, self.storage, self.panel, tokens)
        found = [k for k in kernels() if (k.packing, k.storage) == (self.packing, self.storage)]
        if not found:
            raise ValueError(f"layout: expected one with a kernel, got {self}")
        tiled = [k for k in found if k.tile.startswith("t")]
        chosen = tiled if tiled and tokens > FEW_TOKENS else [k for k in found if k not in tiled]
        return chosen[0].base_name

    def buckets(self, packing: int) -> tuple[Bucket, ...]:
        """A plan for any number of tokens out of this layout alone, as packing number `packing`."""
        if self.device == "cuda":
            return cuda_layouts.buckets(self.packing, self.storage, self.panel, packing)
        few, many = self.kernel(1), self.kernel(FEW_TOKENS + 1)
        last = Bucket(None, packing, many)
        return (last,) if few == many else (Bucket(FEW_TOKENS, packing, few), last)

    def __str__(self) -> str:
        device = "" if self.device == "cpu" else f"_{self.device}"
        return f"{self.packing}_{self.storage}" + (f"_p{self.panel}" if self.panel else "") + device


def default_kernel(packed: Tensor, tokens: int = 1) -> str:
    """Base name of the kernel that reads this packing."""
    return Layout.of(describe(packed)).kernel(tokens)


def layouts(dtype: torch.dtype, x_dtype: torch.dtype, tokens: int) -> tuple[Layout, ...]:
    """Those for a weight of `dtype`, activations of `x_dtype` and so many tokens: one of them is fastest."""
    few, many = _storages(dtype, x_dtype)
    found = []
    if tokens <= FEW_TOKENS:
        found += [Layout("sell", few), Layout("bitmap", few)]
    if tokens > 2:  # at AVX2 rowlist wins at 4 tokens from 90 % up
        panels = (0, _WIDE_PANEL) if many == "f32" and tokens <= _WIDE_PANEL_TOKENS else (0,)
        found += [Layout(packing, many, panel) for panel in panels for packing in ("rowgroup", "rowlist")]
    return tuple(found)


def may_win(layout: Layout, sparsity: float) -> bool:
    """Whether it is worth measuring at this sparsity: elsewhere it has never won on Zen 4 (bench/results)."""
    bounds = {"bitmap": (0.0, 0.75), "rowgroup": (0.0, 0.9), "rowlist": (0.6, 1.0)}
    low, high = bounds.get(layout.packing, (0.0, 1.0))
    return low <= sparsity <= high


def compact_layout(dtype: torch.dtype, x_dtype: torch.dtype) -> Layout:
    """The layout of fewest bytes that has kernels for any number of tokens."""
    return Layout("bitmap", _storages(dtype, x_dtype)[0])


def _storages(dtype: torch.dtype, x_dtype: torch.dtype) -> tuple[str, str]:
    """Of the layouts for few tokens, and of those for many."""
    if dtype == torch.bfloat16:
        # Without the instruction the dot product of pairs is slower than widening once per weight.
        if x_dtype == torch.bfloat16 and active_isa() == "avx512bf16":
            return "bf16", "bf16"
        return "wbf16", "f32"
    return ("wf16", "f32") if dtype == torch.float16 else ("f32", "f32")
