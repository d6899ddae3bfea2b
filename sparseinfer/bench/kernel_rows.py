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
    """A row of the registry with one layout that its kernel reads.

    in_plans  the planner offers the layout for this dtype and number of tokens, at the level in use
    """

    kernel: ops.KernelInfo
    layout: ops.Layout
    in_plans: bool

    @property
    def name(self) -> str:
        """The kernel's, and the panel's width if it is not the packing's own choice."""
        panel = f" p{self.layout.panel}" if self.layout.panel else ""
        return self.kernel.name + panel

    def planned(self, sparsity: float) -> bool:
        """Whether the planner would time it for a weight of this sparsity."""
        return self.in_plans and self.kernel.min_sparsity <= sparsity <= self.kernel.max_sparsity


def kernel_rows(
    dtype: torch.dtype, tokens: int, isa: str, block: tuple[int, int] | None = None
) -> Iterator[KernelRow]:
    """Every kernel of the level `isa` for weights and x of `dtype`; those for BSR only with a `block`.

    A kernel meant for fewer tokens is left out: it would read the weight again and again.
    """
    offered = ops.layouts(dtype, dtype, tokens) if isa == ops.active_isa() else ()
    for kernel in ops.kernels():
        if kernel.isa != isa or kernel.storage not in _STORAGES[dtype]:
            continue
        if kernel.max_tokens and tokens > kernel.max_tokens:
            continue
        if kernel.format == "bsr" and not _takes_block(kernel, block):
            continue
        wide = kernel.wide_panel and tokens <= kernel.bucket_tokens
        for panel in (0, kernel.wide_panel) if wide else (0,):
            layout = ops.Layout(kernel.packing, kernel.storage, panel)
            yield KernelRow(kernel, layout, layout in offered and tokens >= kernel.min_tokens)


def _takes_block(kernel: ops.KernelInfo, block: tuple[int, int] | None) -> bool:
    """Products of pairs of columns need blocks of an even number of columns."""
    return block is not None and (kernel.storage != "bf16" or block[1] % 2 == 0)
