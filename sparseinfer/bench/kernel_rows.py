"""Which rows of the kernel registry can compute a layer, and with which layouts of its weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sparseinfer import ops

# Storages that hold a dtype exactly, and whose kernels take activations in it.
_STORAGES = {
    torch.float32: ("f32",),
    torch.bfloat16: ("f32", "wbf16", "bf16"),
    torch.float16: ("f32", "wf16"),
}


@dataclass(frozen=True)
class KernelRow:
    """One kernel with one layout that it reads.

    kernel      its full name, which forces its instruction-set level
    format      "csr" or "bsr": what the layout is packed from
    is_planned  the planner tries the layout for this dtype and number of tokens, at the level in use
    """

    kernel: str
    layout: ops.Layout
    format: str
    is_planned: bool

    def planned(self, sparsity: float) -> bool:
        """Whether the planner tries it at this sparsity."""
        return self.is_planned and ops.may_win(self.layout, sparsity)


def kernel_rows(
    dtype: torch.dtype, tokens: int, isa: str, block: tuple[int, int] | None
) -> Iterator[KernelRow]:
    """Of the level `isa`, for weights and activations of `dtype`; those for BSR where zeros lie in blocks."""
    planned = ops.layouts(dtype, dtype, tokens) if isa == ops.active_isa() else ()
    wide = {layout.panel for layout in ops.layouts(dtype, dtype, tokens)} - {0}
    for kernel in ops.kernels():
        if kernel.isa != isa or kernel.storage not in _STORAGES[dtype]:
            continue
        if kernel.packing == "bsr" and (block is None or (kernel.storage == "bf16" and block[1] % 2)):
            continue
        if kernel.packing == "sell" and tokens > ops.FEW_TOKENS:
            continue
        panels = (0, *wide) if kernel.packing in ("rowgroup", "rowlist") and kernel.storage == "f32" else (0,)
        for panel in panels:
            layout = ops.Layout(kernel.packing, kernel.storage, panel)
            tried = layout in planned and layout.kernel(tokens) == kernel.base_name
            yield KernelRow(kernel.name, layout, "bsr" if kernel.packing == "bsr" else "csr", tried)
