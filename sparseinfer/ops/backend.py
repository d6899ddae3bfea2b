"""Selects the implementation for a tensor's device; no other module looks at the device.

The implementations are two packages, ops.cpu and ops.cuda, with the same modules and functions:

kernels   `kernels()`: every row of the device's table, even if the build lacks the kernels; `format_of`
packing   `pack_on`, `packing_for`, `describe`, `unpack`
layouts   `computing` and `preferred`: the kernels for given dtypes; `panel_of`, `panel_for`
linear    `run(x, packings, bias, n, plan, activation)`
conv      `run(x, packings, bias, n, geometry, plan, activation)`
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.ops import cpu, cuda
from sparseinfer.ops.packed import FORMATS, PackedInfo
from sparseinfer.ops.schema import library, with_geometry

BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda}


def backend_of(t: Tensor) -> ModuleType | None:
    """The implementation for the device of t; None: there is none (torch's dispatcher reports that)."""
    if t.is_cpu:  # first, and nothing else: a call of a small layer waits for it
        return cpu
    return cuda if t.is_cuda else None


def describe(packed: Tensor) -> PackedInfo:
    """What a packing holds, in CPU or device memory. ValueError: not a packing."""
    return (backend_of(packed) or cpu).packing.describe(packed)


def made_from(info: PackedInfo) -> type[CSR] | type[BSR]:
    """The format that a packing is made from, and unpacked to."""
    return FORMATS[BACKENDS[info.device].kernels.format_of(info.packing)]


def unpack(packed: Tensor) -> CSR | BSR:
    """The format a packing was made from, in CPU memory, bit for bit. ValueError: not an intact packing."""
    return (backend_of(packed) or cpu).packing.unpack(packed)


def register() -> None:
    """Registers both implementations of both operators with torch's dispatcher."""
    for key, backend in (("CPU", cpu), ("CUDA", cuda)):
        library.impl("linear", of_plain_tensors(backend.linear.run), key)
        library.impl("conv", of_plain_tensors(with_geometry(backend.conv.run)), key)


def of_plain_tensors(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps run for the dispatcher, which may pass tensor subclasses, whose results may be on any device."""

    def kernel(x: Tensor, *rest: Any) -> Tensor:
        if type(x) is not Tensor:
            with torch._C.DisableTorchFunctionSubclass():
                x = x.as_subclass(Tensor)
        return run(x, *rest)

    return kernel
