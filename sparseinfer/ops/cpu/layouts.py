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
    """The kernels at the active level that plans choose from: for each packing those of one storage.

    block  only those that read such blocks

    This is the storage of fewest bytes. If two storages take two bytes, pairs are faster where one
    instruction multiplies them, else single widened weights are (KernelInfo.native).
    """
    usable = [row for row in computing(dtype, x_dtype) if row.native and (row.conv or not conv)]
    if block is not None:
        usable = [row for row in usable if row.takes_block(block)]
    best: dict[str, str] = {}
    for row in usable:
        best[row.packing] = min(row.storage, best.get(row.packing, row.storage), key=_cost)
    return tuple(row for row in usable if row.storage == best[row.packing])


def _cost(storage: str) -> tuple[int, bool]:
    return STORAGES[storage].nbytes, STORAGES[storage].x_dtype is None
