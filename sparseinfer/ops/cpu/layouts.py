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
    """The kernels at the active level that plans choose from: for each packing those of fewest bytes.

    block  only those that read such blocks

    If two storages of floats take two bytes, both are there, pairs first: which is faster depends on how a
    CPU multiplies pairs. Where it has no instruction for pairs, single widened weights are faster
    (KernelInfo.native). Where x may be quantized, kernels that
    do so come alone.
    """
    usable = [row for row in computing(dtype, x_dtype) if row.native and (row.conv or not conv)]
    if block is not None:
        usable = [row for row in usable if row.takes_block(block)]
    usable.sort(key=lambda row: STORAGES[row.storage].x_dtype is None)
    best: dict[str, str] = {}
    for row in usable:
        best[row.packing] = min(row.storage, best.get(row.packing, row.storage), key=_cost)
    return tuple(row for row in usable if _as_good(row.storage, best[row.packing], x_dtype))


def _cost(storage: str) -> tuple[int, bool]:
    return STORAGES[storage].nbytes, STORAGES[storage].x_dtype is None


def _as_good(storage: str, best: str, x_dtype: torch.dtype) -> bool:
    same_bytes = STORAGES[storage].nbytes == STORAGES[best].nbytes
    return storage == best or (same_bytes and x_dtype.is_floating_point)
