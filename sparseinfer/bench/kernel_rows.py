"""Finds the rows of the kernel registry that can compute a layer, and the layouts of its weight for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from sparseinfer import ops
from sparseinfer.ops.cpu.kernels import KernelInfo
from sparseinfer.ops.cpu.layouts import computing


@dataclass(frozen=True)
class KernelRow:
    """One kernel at the instruction-set level `isa`, with one layout that it reads."""

    kernel: KernelInfo
    layout: ops.Layout
    isa: str
    block: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The kernel's name, and the panel width if it is not the packing's default."""
        return self.kernel.name + (f" p{self.layout.panel}" if self.layout.panel else "")

    def planned(self, dtype: torch.dtype, tokens: int, sparsity: float) -> bool:
        """Whether `convert`, at the active level, would time it for weights and x of `dtype`."""
        meant = self.kernel.serves(tokens) and self.kernel.suits(sparsity)
        if self.isa != ops.active_isa() or not meant:
            return False
        x_dtype = _x_dtype(dtype)
        return self.layout in ops.candidate_layouts("cpu", dtype, x_dtype, tokens, sparsity, block=self.block)


def kernel_rows(
    dtype: torch.dtype, tokens: int, isa: str, block: tuple[int, int] | None = None
) -> Iterator[KernelRow]:
    """Every kernel of the level `isa` for weights and x of `dtype`; those for BSR only with a `block`.

    A kernel for fewer tokens is left out: it would read the weight many times.
    """
    for kernel in computing(dtype, _x_dtype(dtype), isa):
        if kernel.max_tokens and tokens > kernel.max_tokens:
            continue
        if kernel.format == "bsr" and (block is None or not kernel.takes_block(block)):
            continue
        layout = ops.Layout.read_by(kernel)
        yield KernelRow(kernel, layout, isa, block)
        if kernel.wide_panel and tokens <= kernel.bucket_tokens:
            yield KernelRow(kernel, replace(layout, panel=kernel.wide_panel), isa, block)


def _x_dtype(dtype: torch.dtype) -> torch.dtype:
    """What kernels for weights of `dtype` may round x to."""
    return torch.uint8 if dtype == torch.int8 else dtype
