"""Packings of the CUDA kernels, made by torch on the device where the weight is.

The layout is described, and its sizes, checks and way back are, in csrc/include/sparseinfer/gpu_packings.h.
Everything here runs on any device: a machine without a GPU packs on the CPU and tests what it got.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats import BSR, CSR
from sparseinfer.formats._checks import DTYPE_NAMES
from sparseinfer.ops.packing import DTYPES, PackedInfo

BLOCKS = (16, 32, 64, 128)
_VECTOR_BYTES = 16
_STAGE_COLUMNS = 64


def pack(fmt: CSR | BSR, device: torch.device | str | None = None) -> Tensor:
    """Packing "csr" or "bsr" of a format, as a uint8 tensor [nbytes] on `device`, by default the current GPU.

    ValueError: blocks that are not 16, 32, 64 or 128 square, or more than the kernels count. TypeError:
    blocks of float32.
    """
    fmt.validate()
    device = torch.device("cuda" if device is None else device)
    values, crow, col = (t.to(device) for t in (fmt.values, fmt.crow_indices, fmt.col_indices))
    if isinstance(fmt, CSR):
        return pack_csr(values, crow, col, fmt.shape)
    r, c = fmt.block_size
    if r != c or r not in BLOCKS:
        wanted = ", ".join(map(str, BLOCKS))
        raise ValueError(f"block_size: expected square blocks of {wanted} on CUDA, got {(r, c)}")
    if fmt.dtype == torch.float32:
        raise TypeError("values: expected blocks of bfloat16 or float16 on CUDA, got float32 (use CSR)")
    return pack_bsr(values, crow, col, fmt.shape)


def pack_dense(weight: Tensor) -> Tensor:
    """Packing "csr" of the non-zero elements of weight [n, k], on its device. NaN is kept, -0.0 is a zero."""
    kept = weight != 0
    crow = torch.zeros(weight.shape[0] + 1, dtype=torch.int64, device=weight.device)
    torch.cumsum(kept.sum(1), 0, out=crow[1:])
    return pack_csr(weight[kept], crow, kept.nonzero()[:, 1], (weight.shape[0], weight.shape[1]))


def pack_csr(values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Tensor:
    """From the parts of CSR [n, k], on their device: values [nnz], crow [n + 1], col [nnz]."""
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
    starts = _offsets(-(-counts // per_vector))
    by_list = torch.argsort(lists, stable=True)
    lists = lists[by_list]
    rank = torch.arange(values.shape[0], device=device) - _offsets(counts)[lists]
    place = starts[lists] * per_vector + rank

    blob = _Blob("csr", values, shape, values.shape[0], 1, int(starts[-1]))
    offsets = torch.from_numpy(core.gpu_column_offsets().astype(np.uint16).view(np.int16)).to(device)
    blob.section("order", torch.uint8, n).copy_(rows % window)
    blob.section("starts", torch.int32, starts.numel()).copy_(starts)
    columns = blob.section("columns", torch.int16, blob.units * per_vector).fill_(offsets[-1])
    columns[place] = offsets[col[by_list] % width]
    blob.section("values", values.dtype, blob.units * per_vector)[place] = values[by_list]
    return blob.finished()


def pack_bsr(values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Tensor:
    """From the parts of BSR [n, k], there: values [nblocks, b, b], crow [n / b + 1], col [nblocks]."""
    device, block, (n, k) = values.device, values.shape[1], shape
    columns = min(block, _STAGE_COLUMNS)
    pieces, per_stage = block // columns, _STAGE_COLUMNS // columns
    lengths = crow.diff()

    rows = torch.argsort(lengths, descending=True, stable=True)
    position = torch.empty_like(rows)
    position[rows] = torch.arange(n // block, device=device)
    starts = _offsets(-(-lengths[rows] * pieces // per_stage) * per_stage)
    row_of = torch.arange(n // block, device=device).repeat_interleave(lengths, output_size=values.shape[0])
    rank = torch.arange(values.shape[0], device=device) - crow[row_of]
    each = torch.arange(pieces, device=device)
    place = ((starts[position[row_of]] + rank * pieces)[:, None] + each).flatten()

    blob = _Blob("bsr", values, shape, values.numel(), block, int(starts[-1]))
    blob.section("order", torch.int32, n // block).copy_(rows)
    blob.section("starts", torch.int32, starts.numel()).copy_(starts)
    filled = blob.section("columns", torch.int32, blob.units).fill_(k // columns)
    filled[place] = (col.to(torch.int64)[:, None] * pieces + each).flatten().to(torch.int32)
    # Chunks of 16 bytes, which are what a swizzle moves.
    chunks = block * columns // 8
    slabs = values.view(-1, block, pieces, columns).transpose(1, 2).reshape(-1, chunks, 8)
    swizzled = torch.from_numpy(core.gpu_swizzled_chunks(block)).to(device, torch.int64)
    stored = blob.section("values", values.dtype, blob.units * block * columns).view(-1, chunks, 8)
    stored[place] = slabs[:, swizzled]
    return blob.finished()


def unpack(packed: Tensor) -> CSR | BSR:
    """The format that a packing was made from, in CPU memory, bit for bit. ValueError: not intact."""
    info = describe(packed)
    host = packed.cpu()
    block = info.block_size[0]
    units = info.nnz // (block * block)
    shape = (units, block, block) if info.packing == "bsr" else (units,)
    values = torch.empty(shape, dtype=DTYPES[info.dtype])
    crow = torch.empty(info.n // block + 1, dtype=torch.int64)
    col = torch.empty(units, dtype=torch.int32)
    core.gpu_unpack(host.data_ptr(), host.numel(), crow.data_ptr(), col.data_ptr(), values.data_ptr())
    return (BSR if info.packing == "bsr" else CSR)(values, crow, col, (info.n, info.k))


@dataclass(frozen=True, slots=True)
class Resident:
    """What the host knows of a packing on a device: its header [128], figures, and of which bytes."""

    header: Tensor
    info: PackedInfo
    address: int
    version: int


_RESIDENT = "_sparseinfer_resident"


def resident(packed: Tensor) -> Resident:
    """The header of a packing, without a look at the device but the first time and after it was written to.

    Then the whole packing is copied to the host and checked. ValueError: not a packing. RuntimeError: that
    first time is during the capture of a CUDA graph.
    """
    known: Resident | None = getattr(packed, _RESIDENT, None)
    if known is not None and known.address == packed.data_ptr() and known.version == _version(packed):
        return known
    if packed.dtype != torch.uint8 or packed.ndim != 1 or not packed.is_contiguous():
        got = f"{packed.dtype} {tuple(packed.shape)} with stride {packed.stride()}"
        raise ValueError(f"packed: expected a contiguous uint8 vector, got {got}")
    if packed.is_cuda and torch.cuda.is_current_stream_capturing():
        hint = "run the layer once before"
        raise RuntimeError(f"packed: expected one used before, got a new one in a CUDA graph ({hint})")
    host = packed.cpu()
    core.gpu_check(host.data_ptr(), host.numel())
    return _known(packed, host[: core.gpu_header_bytes].clone())


def describe(packed: Tensor) -> PackedInfo:
    """Figures of a packing. ValueError: not one."""
    return resident(packed).info


def _known(packed: Tensor, header: Tensor) -> Resident:
    found = core.gpu_describe(header.data_ptr(), packed.numel())
    info = PackedInfo(
        packing=found["packing"],
        dtype=found["dtype"],
        storage=found["dtype"],
        n=found["n"],
        k=found["k"],
        nnz=found["nnz"],
        nbytes=found["nbytes"],
        panel=core.gpu_panel_columns if found["packing"] == "csr" else 0,
        block_size=(found["block"], found["block"]),
        device="cuda",
    )
    known = Resident(header, info, packed.data_ptr(), _version(packed))
    setattr(packed, _RESIDENT, known)
    return known


def _version(packed: Tensor) -> int:
    return -1 if packed.is_inference() else packed._version


def _offsets(counts: Tensor) -> Tensor:
    """Exclusive sums, int64 [len + 1]."""
    sums = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=sums[1:])
    return sums


class _Blob:
    """A packing that is being filled."""

    def __init__(
        self, packing: str, values: Tensor, shape: tuple[int, int], nnz: int, block: int, units: int
    ) -> None:
        dtype = core.dtypes.index(DTYPE_NAMES[values.dtype])
        header, nbytes = core.gpu_header(packing, dtype, *shape, nnz, block, units)
        self._header = torch.from_numpy(header)
        self._where = core.gpu_describe(self._header.data_ptr(), nbytes)
        self.units = units
        with torch.inference_mode(False):  # an inference tensor could not be told apart from a changed one
            self._data = torch.zeros(nbytes, dtype=torch.uint8, device=values.device)

    def section(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        begin = self._where[name]
        return self._data[begin : begin + count * dtype.itemsize].view(dtype)

    def finished(self) -> Tensor:
        self._data[: self._header.numel()] = self._header.to(self._data.device)
        _known(self._data, self._header)
        return self._data
