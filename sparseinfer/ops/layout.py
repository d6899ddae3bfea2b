"""Layouts of a weight in memory, and the kernels that read them.

The rows of kernels tell which kernel serves which number of tokens; this needs no device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.formats.dtypes import DTYPE_NAMES
from sparseinfer.ops.backend import BACKENDS, describe
from sparseinfer.ops.kernel import Kernel
from sparseinfer.ops.packed import PackedInfo
from sparseinfer.ops.plan import Bucket


@dataclass(frozen=True)
class Layout:
    """A packing, its storage, and its panel if not the packing's default; see `ops.pack`.

    On `device` "cuda" the packings are "csr", "bitmap", "delta4", "delta8" and "bsr", whose panel is the
    block size; the storage is the weight's dtype.
    """

    packing: str
    storage: str = "f32"
    panel: int = 0
    device: str = "cpu"

    @classmethod
    def of(cls, info: PackedInfo) -> Layout:
        """The layout of an existing packing."""
        panel = BACKENDS[info.device].layouts.panel_of(info)
        return cls(info.packing, info.storage, panel, info.device)

    @classmethod
    def on_cpu(cls, fmt: CSR | BSR) -> Layout:
        """The layout that CPU kernels read a format in by default."""
        packing = BACKENDS["cpu"].packing
        return cls(packing.packing_for(fmt), packing.storage_for(fmt))

    @classmethod
    def on_cuda(cls, fmt: CSR | BSR) -> Layout:
        """The default layout of a format for CUDA kernels. Errors as in packing."""
        packing = BACKENDS["cuda"].packing.packing_for(fmt)
        panel = fmt.block_size[0] if isinstance(fmt, BSR) else 0
        return cls(packing, DTYPE_NAMES[fmt.dtype], panel, "cuda")

    @classmethod
    def read_by(cls, kernel: Kernel, device: str = "cpu") -> Layout:
        """The layout that a kernel of `kernels_for` reads, with the packing's default panel."""
        panel = BACKENDS[device].layouts.panel_for(kernel)
        return cls(kernel.packing, kernel.storage, panel, device)

    @property
    def format(self) -> str:
        """What it is made from, "csr" or "bsr". ValueError: no kernel reads it."""
        return self._readers()[0].format

    def pack(self, fmt: CSR | BSR, isa: str = "", device: torch.device | None = None) -> Tensor:
        """Packs a format on `device`, by default the CPU or the current GPU."""
        packing = BACKENDS[self.device].packing
        return packing.pack_on(device, fmt, self.packing, storage=self.storage, panel=self.panel, isa=isa)

    def row(self, tokens: int = 1) -> Kernel:
        """The kernel for this layout and number of tokens. ValueError: there is none."""
        return _meant_for(self._readers(), tokens)

    def kernel(self, tokens: int = 1) -> str:
        """Base name of the kernel for this layout and number of tokens."""
        return self.row(tokens).base_name

    def conv_kernel(self, tokens: int = 1) -> str:
        """Base name of the kernel for a convolution with this number of output pixels."""
        return _meant_for(self._conv_readers(), tokens).base_name

    def buckets(self, packing: int) -> tuple[Bucket, ...]:
        """A plan for any number of tokens with this layout alone, as packing number `packing`."""
        return self._plan(packing, self.kernel)

    def conv_buckets(self, packing: int) -> tuple[Bucket, ...]:
        """The same for a convolution and any number of pixels."""
        return self._plan(packing, self.conv_kernel)

    def _plan(self, packing: int, kernel: Callable[[int], str]) -> tuple[Bucket, ...]:
        buckets: list[Bucket] = []
        tokens = 0
        for limit in token_limits(self.device):
            tokens = tokens + 1 if limit is None else limit
            name = kernel(tokens)
            if buckets and buckets[-1].kernel == name:
                buckets.pop()
            buckets.append(Bucket(limit, packing, name))
        return tuple(buckets)

    def _readers(self) -> tuple[Kernel, ...]:
        readers = _readers_of(self)
        if not readers:
            raise ValueError(f"layout: expected one with a kernel, got {self}")
        return readers

    def _conv_readers(self) -> tuple[Kernel, ...]:
        # Where none takes a convolution: the one for many tokens, which a layer refuses by its name.
        return tuple(row for row in self._readers() if row.conv) or (self.row(FEW_TOKENS + 1),)

    def __str__(self) -> str:
        device = "" if self.device == "cpu" else f"_{self.device}"
        return f"{self.packing}_{self.storage}" + (f"_p{self.panel}" if self.panel else "") + device


def token_limits(device: str) -> tuple[int | None, ...]:
    """Upper limits of the token buckets, ascending; within a bucket no choice changes. None = no limit."""
    rows = BACKENDS[device].kernels.kernels()
    limits = {row.max_tokens for row in rows} | {row.bucket_tokens for row in rows}
    return (*sorted(limits - {0}), None)


@lru_cache(maxsize=1024)
def _readers_of(layout: Layout) -> tuple[Kernel, ...]:
    """The kernels that read a layout, on the CPU at the active level."""
    room, stored = BACKENDS[layout.device].layouts, (layout.packing, layout.storage)
    rows = (row for row in room.rows() if (row.packing, row.storage) == stored)
    return tuple(row for row in rows if room.panel_for(row) in (0, layout.panel))


def _meant_for(rows: tuple[Kernel, ...], tokens: int) -> Kernel:
    """Of the kernels meant for so many tokens one that is planned, for the most tokens; else the first."""
    serving = [row for row in rows if row.serves(tokens)]
    return max(serving, key=lambda row: (row.is_planned, row.min_tokens), default=rows[0])


def default_kernel(packed: Tensor, tokens: int = 1) -> str:
    """Base name of the kernel that reads this packing."""
    return Layout.of(describe(packed)).kernel(tokens)


# Up to so many tokens the CPU decodes a weight for each few of them; beyond, x is cut into tiles of many.
FEW_TOKENS = max(row.max_tokens for row in BACKENDS["cpu"].kernels.kernels() if row.min_tokens == 1)

# `token_limits` of a GPU.
CUDA_LIMITS = token_limits("cuda")
