"""Lists the CPU kernels of this build."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from sparseinfer._native import core
from sparseinfer.ops.kernel import Kernel
from sparseinfer.ops.names import STORAGES


@dataclass(frozen=True)
class KernelInfo(Kernel):
    """One compiled kernel. `available`: this machine has the instructions of its level `isa`.

    `conv`: it also computes convolutions. `tiles`: it multiplies on tiles. `native`: its level has
    instructions for the storage's arithmetic; otherwise they are emulated. `panelled`: its packing has a
    choice of panel widths. `block_rows`, `block_columns`: of a packing of blocks, what their number of rows
    and of columns has to be a multiple of. The other fields are those of `Kernel`.
    """

    name: str
    op: str
    packing: str
    storage: str
    tile: str
    isa: str
    conv: bool
    available: bool
    tiles: bool
    native: bool
    min_tokens: int
    bucket_tokens: int
    max_tokens: int
    min_sparsity: float
    max_sparsity: float
    wide_panel: int
    tile_tokens: int
    format: str
    panelled: bool
    block_rows: int
    block_columns: int

    def takes_block(self, block: tuple[int, int]) -> bool:
        """Whether it reads blocks of r rows and c columns."""
        whole = block[0] % self.block_rows == 0 and block[1] % self.block_columns == 0
        return self.format == "bsr" and whole

    @property
    def unit(self) -> str:
        """What multiplies, by the keys of `names.UNITS`: tiles, or what the storage needs."""
        if self.tiles:
            return "tile_int8" if STORAGES[self.storage].x_dtype == torch.uint8 else "tile_bf16"
        return STORAGES[self.storage].unit if self.native else "fma"


@lru_cache(maxsize=1)
def kernels() -> tuple[KernelInfo, ...]:
    """Every kernel of this build, at every level, slowest level first."""
    return tuple(KernelInfo(**row) for row in core.kernels())


@lru_cache(maxsize=64)
def kernels_at(isa: str) -> tuple[KernelInfo, ...]:
    """The kernels that a level runs: its own, and those of the levels below it that it does not replace.

    Levels above avx512bf16 have kernels of their own for some packings only.
    """
    order = list(dict.fromkeys(row.isa for row in kernels()))
    levels = order[: order.index(isa) + 1] if isa in order else []
    return tuple({row.base_name: row for row in kernels() if row.isa in levels}.values())


def isa_levels() -> list[str]:
    """Instruction-set levels that this build has and this machine supports, slowest first."""
    return core.isa_levels()


def active_isa() -> str:
    """The active level: the best supported one, or the one named by SPARSEINFER_ISA.

    ValueError: the variable names an unknown or unsupported level.
    """
    return core.active_isa()


@lru_cache(maxsize=64)
def format_of(packing: str) -> str:
    """The format that a packing is made from, "csr" or "bsr"."""
    return next(row.format for row in kernels() if row.packing == packing)


@lru_cache(maxsize=64)
def is_panelled(packing: str) -> bool:
    """Whether a packing divides its columns into panels, whose width may be chosen."""
    return next(row.panelled for row in kernels() if row.packing == packing)


def kernel_info(base_name: str) -> KernelInfo:
    """The kernel of this name at the active level. ValueError as of `kernel_id`."""
    return kernels()[kernel_id(base_name)]


@lru_cache(maxsize=1024)
def kernel_id(base_name: str) -> int:
    """Id, for `_core.spmm`, of the kernel at the active level. A full name, with suffix, forces its level.

    ValueError: no such kernel, or not on this machine.
    """
    levels = isa_levels()
    here = {kernel.base_name: kernel.name for kernel in kernels_at(active_isa())}
    wanted = here.get(base_name, base_name)
    for index, kernel in enumerate(kernels()):
        if kernel.name == wanted and kernel.isa in levels:
            return index
    names = sorted(here)
    raise ValueError(
        f"kernel: expected one of {', '.join(names)} (levels {', '.join(levels)}), got {base_name}"
    )
