"""Finds the CPU kernels and storages for weights and activations of given dtypes."""

from __future__ import annotations

import torch

from sparseinfer.ops.cpu.kernels import KernelInfo, active_isa, is_panelled, kernels_at
from sparseinfer.ops.names import STORAGES
from sparseinfer.ops.packed import PackedInfo


def panel_of(info: PackedInfo) -> int:
    """The panel of a packing if it is part of the layout, else 0."""
    return info.panel if is_panelled(info.packing) else 0


def panel_for(kernel: KernelInfo) -> int:
    """0, the packing's default panel: the kernel reads any panel."""
    return 0


def rows(isa: str = "") -> tuple[KernelInfo, ...]:
    """All kernels that a level runs, by default the active one."""
    return kernels_at(isa or active_isa())


def computing(dtype: torch.dtype, x_dtype: torch.dtype, isa: str = "") -> tuple[KernelInfo, ...]:
    """Every kernel of a level that rounds neither weights nor activations."""
    return tuple(row for row in rows(isa) if STORAGES[row.storage].takes(dtype, x_dtype))


def preferred(
    dtype: torch.dtype, x_dtype: torch.dtype, *, conv: bool = False, block: tuple[int, int] | None = None
) -> tuple[KernelInfo, ...]:
    """The kernels at the active level that plans choose from.

    block  only those that read such blocks

    For each packing these are the kernels of the storage of fewest bytes; where the level has no instruction
    for it, of the next (KernelInfo.native). In a packing that only tiles read, a weight is read once for all
    tokens of a tile, and bytes decide less. Weights of two bytes are there in pairs and widened, because
    CPUs multiply pairs at very different rates, and where there are no pairs in fp32 as well.
    """
    usable = [row for row in computing(dtype, x_dtype) if row.native and (row.conv or not conv)]
    if block is not None:
        usable = [row for row in usable if row.takes_block(block)]
    best: dict[str, str] = {}
    for row in usable:
        best[row.packing] = min(row.storage, best.get(row.packing, row.storage), key=_cost)
    few_tokens = {row.packing for row in rows() if not row.tile_tokens}
    return tuple(
        row
        for row in usable
        if row.storage == best[row.packing]
        or (row.packing not in few_tokens and _may_be_faster(row.storage, best[row.packing]))
    )


def _cost(storage: str) -> tuple[int, bool]:
    return STORAGES[storage].nbytes, STORAGES[storage].x_dtype is None


def _may_be_faster(storage: str, best: str) -> bool:
    return STORAGES[best].x_dtype is None or STORAGES[storage].nbytes == STORAGES[best].nbytes
