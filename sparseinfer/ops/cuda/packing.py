"""Packs weights for the CUDA kernels, by torch on the weight's device.

csrc/include/sparseinfer/gpu_packings.h describes the layouts; native code computes sizes, checks and unpacks.
This code runs on any device, so that a machine without a GPU can pack on the CPU and test the result.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats import BSR, CSR
from sparseinfer.formats.checks import address
from sparseinfer.ops.cuda.blob import Blob, Resident, offsets, remember, remembered
from sparseinfer.ops.cuda.kernels import format_of, kernels
from sparseinfer.ops.cuda.tiles import DELTA, TILED, pack_bitmap, pack_delta
from sparseinfer.ops.names import DTYPES
from sparseinfer.ops.packed import PackedInfo, check_made_from, unpacked

# Sizes of square blocks that there are kernels for.
BLOCKS = tuple(sorted({kernel.block for kernel in kernels() if kernel.format == "bsr"}))
_VECTOR_BYTES = 16
_STAGE_COLUMNS = 64


def pack(fmt: CSR | BSR, device: torch.device | str | None = None, packing: str | None = None) -> Tensor:
    """The packing of a format, as a uint8 tensor [nbytes] on `device`, by default the current GPU.

    BSR is packed as "bsr"; CSR as "csr" by default, or as "bitmap", "delta4" or "delta8", which hold 16 bits.
    The last two leave out stored zeros, -0.0 not among them.

    ValueError: an unknown packing, blocks that are not 16, 32, 64 or 128 square, or more than the kernels
    count. TypeError: a packing of the other format, or float32 where it takes 16 bits.
    """
    fmt.validate()
    packing = packing_for(fmt, packing)
    device = torch.device("cuda" if device is None else device)
    values, crow, col = (t.to(device) for t in (fmt.values, fmt.crow_indices, fmt.col_indices))
    return _pack(packing, values, crow, col, fmt.shape)


def packing_for(fmt: CSR | BSR, packing: str | None = None) -> str:
    """The name of a packing, by default the one for this format. Errors: as `pack`."""
    packing = packing or ("bsr" if isinstance(fmt, BSR) else "csr")
    if packing not in core.gpu_packings:
        raise ValueError(f"packing: expected one of {', '.join(core.gpu_packings)}, got {packing!r}")
    check_made_from(fmt, format_of(packing), packing)
    if isinstance(fmt, BSR):
        r, c = fmt.block_size
        if r != c or r not in BLOCKS:
            sizes = ", ".join(map(str, BLOCKS))
            raise ValueError(f"block_size: expected square blocks of {sizes} on CUDA, got {(r, c)}")
    _check_dtype(packing, fmt.dtype)
    return packing


def _check_dtype(packing: str, dtype: torch.dtype) -> None:
    """TypeError unless some kernel reads weights of this dtype from the packing."""
    held = [DTYPES[name] for name in DTYPES if name in {k.dtype for k in kernels() if k.packing == packing}]
    if dtype not in held:
        wanted, got = " or ".join(map(_short, held)), _short(dtype)
        raise TypeError(f"values: expected {wanted} for packing {packing} on CUDA, got {got} (use csr)")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def pack_on(
    device: torch.device | None, fmt: CSR | BSR, packing: str, *, storage: str, panel: int, isa: str = ""
) -> Tensor:
    """`pack` with the signature that all devices share; storage and panel follow from the format."""
    return pack(fmt, device, packing)


def pack_dense(weight: Tensor, packing: str = "csr") -> Tensor:
    """Packs the non-zero elements of weight [n, k], on its device, for any packing but "bsr"; see `pack`.

    NaN is kept; -0.0 counts as zero.
    """
    if packing not in ("csr", *TILED):
        raise ValueError(f"packing: expected one of csr, {', '.join(TILED)}, got {packing!r}")
    kept = weight != 0
    shape = (weight.shape[0], weight.shape[1])
    return _pack(packing, weight[kept], offsets(kept.sum(1)), kept.nonzero()[:, 1], shape)


def _pack(packing: str, values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Tensor:
    _check_dtype(packing, values.dtype)
    if packing in DELTA:
        return pack_delta(packing, values, crow, col, shape)
    return {"csr": pack_csr, "bsr": pack_bsr, "bitmap": pack_bitmap}[packing](values, crow, col, shape)


def pack_csr(values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Tensor:
    """Packs CSR [n, k] on the device of its parts: values [nnz], crow [n + 1], col [nnz]."""
    (n, k), device = shape, values.device
    width, window = core.gpu_panel_columns, core.gpu_window_rows
    per_vector = _VECTOR_BYTES // values.itemsize
    lengths, col = crow.diff(), col.to(torch.int64)

    # Rows of a window by length, longest first.
    rows = torch.argsort(lengths, descending=True, stable=True)
    rows = rows[torch.argsort(rows // window, stable=True)]
    position = torch.empty_like(rows)
    position[rows] = torch.arange(n, device=device)

    # Lists, in the order in which they are stored; a weight's place is behind those of its list before it.
    panels = -(-k // width)
    row_of = torch.arange(n, device=device).repeat_interleave(lengths, output_size=values.shape[0])
    lists = col // width * n + position[row_of]
    counts = torch.bincount(lists, minlength=panels * n)
    starts = offsets(-(-counts // per_vector))
    by_list = torch.argsort(lists, stable=True)
    lists = lists[by_list]
    rank = torch.arange(values.shape[0], device=device) - offsets(counts)[lists]
    place = starts[lists] * per_vector + rank

    blob = Blob("csr", values, shape, values.shape[0], 1, int(starts[-1]))
    encoded = torch.from_numpy(core.gpu_column_offsets().astype(np.uint16).view(np.int16)).to(device)
    blob.section("order", torch.uint8, n).copy_(rows % window)
    blob.section("starts", torch.int32, starts.numel()).copy_(starts)
    columns = blob.section("columns", torch.int16, blob.units * per_vector).fill_(encoded[-1])
    columns[place] = encoded[col[by_list] % width]
    blob.section("values", values.dtype, blob.units * per_vector)[place] = values[by_list]
    return blob.finished()


def pack_bsr(values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Tensor:
    """Packs BSR [n, k], on its device: values [nblocks, b, b], crow [n / b + 1], col [nblocks]."""
    device, block, (n, k) = values.device, values.shape[1], shape
    columns = min(block, _STAGE_COLUMNS)
    pieces, per_stage = block // columns, _STAGE_COLUMNS // columns
    lengths = crow.diff()

    rows = torch.argsort(lengths, descending=True, stable=True)
    position = torch.empty_like(rows)
    position[rows] = torch.arange(n // block, device=device)
    starts = offsets(-(-lengths[rows] * pieces // per_stage) * per_stage)
    row_of = torch.arange(n // block, device=device).repeat_interleave(lengths, output_size=values.shape[0])
    rank = torch.arange(values.shape[0], device=device) - crow[row_of]
    piece = torch.arange(pieces, device=device)
    place = ((starts[position[row_of]] + rank * pieces)[:, None] + piece).flatten()

    blob = Blob("bsr", values, shape, values.numel(), block, int(starts[-1]))
    blob.section("order", torch.int32, n // block).copy_(rows)
    blob.section("starts", torch.int32, starts.numel()).copy_(starts)
    filled = blob.section("columns", torch.int32, blob.units).fill_(k // columns)
    filled[place] = (col.to(torch.int64)[:, None] * pieces + piece).flatten().to(torch.int32)
    # Chunks of 16 bytes, which are what a swizzle moves.
    chunks = block * columns // 8
    slabs = values.view(-1, block, pieces, columns).transpose(1, 2).reshape(-1, chunks, 8)
    swizzled = torch.from_numpy(core.gpu_swizzled_chunks(block)).to(device, torch.int64)
    stored = blob.section("values", values.dtype, blob.units * block * columns).view(-1, chunks, 8)
    stored[place] = slabs[:, swizzled]
    return blob.finished()


def unpack(packed: Tensor) -> CSR | BSR:
    """The format that a packing was made from, in CPU memory, bit for bit. ValueError: not intact."""
    info, host = describe(packed), packed.cpu()
    fill = partial(core.gpu_unpack, address("packed", host), host.numel())
    return unpacked(info, format_of(info.packing), fill)


def resident(packed: Tensor) -> Resident:
    """The header of a packing, read from the device only at first use and after the packing was written to.

    Then the whole packing is copied to the host and checked. ValueError: not a packing. RuntimeError: this
    would happen during the capture of a CUDA graph.
    """
    noted = remembered(packed)
    if noted is not None:
        return noted
    if packed.dtype != torch.uint8 or packed.ndim != 1 or not packed.is_contiguous():
        got = f"{packed.dtype} {tuple(packed.shape)} with stride {packed.stride()}"
        raise ValueError(f"packed: expected a contiguous uint8 vector, got {got}")
    if packed.is_cuda and torch.cuda.is_current_stream_capturing():
        hint = "run the layer once before"
        raise RuntimeError(f"packed: expected one used before, got a new one in a CUDA graph ({hint})")
    host = packed.cpu()
    core.gpu_check(address("packed", host), host.numel())
    return remember(packed, host[: core.gpu_header_bytes].clone())


def describe(packed: Tensor) -> PackedInfo:
    """Figures of a packing. ValueError: not one."""
    return resident(packed).info
