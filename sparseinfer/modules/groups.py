"""Splits a weight [n, k] into the groups of rows of a grouped convolution, and packs each group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR


def as_layouts(packings: Sequence[str | ops.Layout], fmt: CSR | BSR) -> list[ops.Layout]:
    """The layouts of fmt; a name means that packing in fp32, of int8 in i8."""
    storage = ops.Layout.on_cpu(fmt).storage
    return [name if isinstance(name, ops.Layout) else ops.Layout(name, storage) for name in packings]


def pack_groups(
    fmt: CSR | BSR, layouts: Sequence[ops.Layout], groups: int = 1, device: torch.device | None = None
) -> list[Tensor]:
    """Packs fmt [n, k] in each layout, each group of n / groups rows by itself."""
    parts = split_rows(fmt, groups)
    return [layout.pack(part, device=device) for layout in layouts for part in parts]


def split_rows(fmt: CSR | BSR, groups: int) -> list[CSR | BSR]:
    """Splits fmt [n, k] into groups of n / groups rows. ValueError: a split would cut a block."""
    if groups == 1:
        return [fmt]
    rows, (n, k) = fmt.crow_indices.numel() - 1, fmt.shape
    if rows % groups:
        raise ValueError(f"groups: expected a divisor of {rows} rows of weights or blocks, got {groups}")
    parts: list[CSR | BSR] = []
    for group in range(groups):
        crow = fmt.crow_indices[group * rows // groups : (group + 1) * rows // groups + 1]
        units = slice(int(crow[0]), int(crow[-1]))
        own = None if fmt.scales is None else fmt.scales[group * n // groups : (group + 1) * n // groups]
        shape = (n // groups, k)
        parts.append(type(fmt)(fmt.values[units], crow - crow[0], fmt.col_indices[units], shape, own))
    return parts


def join_rows(parts: Sequence[CSR | BSR]) -> CSR | BSR:
    """The inverse of `split_rows`."""
    first = parts[0]
    if len(parts) == 1:
        return first
    crow, units = [first.crow_indices[:1]], 0
    for part in parts:
        crow.append(part.crow_indices[1:] + units)
        units += part.values.shape[0]
    scales = [part.scales for part in parts if part.scales is not None]
    return type(first)(
        torch.cat([part.values for part in parts]),
        torch.cat(crow),
        torch.cat([part.col_indices for part in parts]),
        (sum(part.shape[0] for part in parts), first.shape[1]),
        torch.cat(scales) if scales else None,
    )
