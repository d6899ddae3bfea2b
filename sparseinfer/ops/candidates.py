"""Lists the kernels and layouts that can compute a layer, and those worth measuring.

Everything follows from the rows of kernels (`ops.kernel`); this file has no limits of tokens or sparsity.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sparseinfer.ops.backend import BACKENDS
from sparseinfer.ops.kernel import Kernel
from sparseinfer.ops.layout import Layout


def kernels_for(
    device: str, dtype: torch.dtype, x_dtype: torch.dtype, *, isa: str = ""
) -> tuple[Kernel, ...]:
    """Every kernel of a device, "cpu" or "cuda", for weights of `dtype` and activations of `x_dtype`.

    Includes kernels that no plan uses. `isa`: the CPU's instruction-set level, by default the active one.
    """
    return BACKENDS[device].layouts.computing(dtype, x_dtype, isa)


def candidate_layouts(
    device: str,
    dtype: torch.dtype,
    x_dtype: torch.dtype,
    tokens: int,
    sparsity: float,
    *,
    conv: bool = False,
    block: tuple[int, int] | None = None,
) -> tuple[Layout, ...]:
    """The layouts worth timing for unstructured zeros; at least one.

    Below the lowest sparsity that any kernel is meant for, the layouts for that sparsity. `conv`: for a
    convolution with `tokens` output pixels. `block`: of the zeros, on the CPU; adds layouts made from BSR.
    """
    rows = _planned(device, dtype, x_dtype, conv)
    tokens = max(tokens, min(row.min_tokens for row in rows))
    if block is not None:
        rows += _planned_for_blocks(dtype, x_dtype, conv, block)
    sparsity = max(sparsity, min(row.min_sparsity for row in rows))
    return _layouts(device, [row for row in rows if row.serves(tokens) and row.suits(sparsity)], tokens)


def all_layouts(device: str, dtype: torch.dtype, x_dtype: torch.dtype) -> tuple[Layout, ...]:
    """The candidates for all numbers of tokens and all sparsities."""
    return _layouts(device, _planned(device, dtype, x_dtype), 1)


def min_sparsity(device: str, dtype: torch.dtype) -> float:
    """The lowest sparsity that any kernel is meant for; below it none is tried."""
    return min(row.min_sparsity for row in _planned(device, dtype, dtype))


def compact_layout(dtype: torch.dtype, x_dtype: torch.dtype) -> Layout:
    """The CPU layout of fewest bytes that has kernels for any number of tokens."""
    by_packing: dict[Layout, list[Kernel]] = {}
    for row in BACKENDS["cpu"].layouts.preferred(dtype, x_dtype):
        by_packing.setdefault(Layout.read_by(row), []).append(row)
    return next(
        layout
        for layout, rows in by_packing.items()
        if any(row.is_planned for row in rows) and _serve_any_tokens(rows)
    )


def _serve_any_tokens(rows: Iterable[Kernel]) -> bool:
    reached = 0
    for row in sorted(rows, key=lambda row: row.min_tokens):
        if row.min_tokens > reached + 1:
            return False
        if not row.max_tokens:
            return True
        reached = max(reached, row.max_tokens)
    return False


def _planned(device: str, dtype: torch.dtype, x_dtype: torch.dtype, conv: bool = False) -> list[Kernel]:
    """Rows that plans name for scattered zeros, in the order of the sparsities that they are meant for."""
    rows = BACKENDS[device].layouts.preferred(dtype, x_dtype, conv=conv)
    planned = (row for row in rows if row.is_planned and row.format == "csr")
    return sorted(planned, key=lambda row: row.min_sparsity)


def _planned_for_blocks(
    dtype: torch.dtype, x_dtype: torch.dtype, conv: bool, block: tuple[int, int]
) -> list[Kernel]:
    rows = BACKENDS["cpu"].layouts.preferred(dtype, x_dtype, conv=conv, block=block)
    return [row for row in rows if row.is_planned]


def _layouts(device: str, rows: list[Kernel], tokens: int) -> tuple[Layout, ...]:
    """Those that the rows read: all in the panels that packings choose, then the wide ones."""
    layouts = [Layout.read_by(row, device) for row in rows]
    for row in rows:
        if row.wide_panel and tokens <= row.bucket_tokens:
            layouts.append(Layout(row.packing, row.storage, row.wide_panel, device))
    return tuple(dict.fromkeys(layouts))


def layouts(dtype: torch.dtype, x_dtype: torch.dtype, tokens: int) -> tuple[Layout, ...]:
    """The CPU's `candidate_layouts` for all sparsities."""
    rows = _planned("cpu", dtype, x_dtype)
    return _layouts("cpu", [row for row in rows if row.serves(tokens)], tokens)


def may_win(layout: Layout, sparsity: float) -> bool:
    """Whether a kernel of the layout is meant for this sparsity, so that measuring is worthwhile."""
    rows = [row for row in BACKENDS[layout.device].layouts.rows() if row.is_planned]
    sparsity = max(sparsity, min(row.min_sparsity for row in rows))
    stored = (layout.packing, layout.storage)
    return any(row.suits(sparsity) for row in rows if (row.packing, row.storage) == stored)
