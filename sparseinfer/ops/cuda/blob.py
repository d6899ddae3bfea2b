"""The common parts of the CUDA kernels' packings: header, sections, and the host's copy of the header."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats.checks import address
from sparseinfer.ops.cuda.kernels import format_of
from sparseinfer.ops.names import DTYPE_NUMBERS
from sparseinfer.ops.packed import PackedInfo, version


@dataclass(frozen=True, slots=True)
class Resident:
    """The host's record of a packing on a device: header [128], figures, and the tensor's state then."""

    header: Tensor
    info: PackedInfo
    address: int
    version: int


_RESIDENT = "_sparseinfer_resident"


def remembered(packed: Tensor) -> Resident | None:
    """The record made by `remember`; None if the packing was written to or moved since."""
    noted: Resident | None = getattr(packed, _RESIDENT, None)
    same = noted is not None and (noted.address, noted.version) == (packed.data_ptr(), version(packed))
    return noted if same else None


def remember(packed: Tensor, header: Tensor) -> Resident:
    """Store the header of a packing on its tensor. ValueError: not a header."""
    figures = core.gpu_describe(address("header", header), packed.numel())
    packing = figures["packing"]
    block = figures["block"] if format_of(packing) == "bsr" else 1
    info = PackedInfo(
        packing=packing,
        dtype=figures["dtype"],
        storage=figures["dtype"],
        n=figures["n"],
        k=figures["k"],
        nnz=figures["nnz"],
        nbytes=figures["nbytes"],
        panel={"csr": core.gpu_panel_columns, "bsr": 0}.get(packing, core.gpu_tile),
        block_size=(block, block),
        device="cuda",
    )
    noted = Resident(header, info, packed.data_ptr(), version(packed))
    setattr(packed, _RESIDENT, noted)
    return noted


def offsets(counts: Tensor) -> Tensor:
    """Exclusive sums, int64 [len + 1]."""
    sums = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=sums[1:])
    return sums


class Blob:
    """A packing under construction on the device of `values`, initially zero."""

    def __init__(
        self, packing: str, values: Tensor, shape: tuple[int, int], nnz: int, block: int, units: int
    ) -> None:
        dtype = DTYPE_NUMBERS[values.dtype]
        header, nbytes = core.gpu_header(packing, dtype, shape, nnz, block, units)
        self._header = torch.from_numpy(header)
        self._where = core.gpu_describe(address("header", self._header), nbytes)
        self.units = units
        with torch.inference_mode(False):  # an inference tensor could not be told apart from a changed one
            self._data = torch.zeros(nbytes, dtype=torch.uint8, device=values.device)

    def section(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        begin = self._where[name]
        return self._data[begin : begin + count * dtype.itemsize].view(dtype)

    def finished(self) -> Tensor:
        self._data[: self._header.numel()] = self._header.to(self._data.device)
        remember(self._data, self._header)
        return self._data
