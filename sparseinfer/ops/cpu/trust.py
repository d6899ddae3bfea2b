"""Checks a whole packing before native code reads it the first time or after it was modified."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.cpu.packing import check_tensor
from sparseinfer.ops.packed import version


@dataclass(frozen=True, slots=True)
class Trusted:
    """A packing that passed the native check, and the state of its tensor at that time."""

    address: int
    nbytes: int
    version: int


# A packing is checked when it is first used and again when its tensor was written to. The verdict is kept on
# the tensor object: a clone is another object, and an address alone may have been recycled.
_VERDICT = "_sparseinfer_trusted"


def address(packed: Tensor) -> int:
    """The address of the packing, after checking it."""
    address: int = packed.data_ptr()
    trusted = getattr(packed, _VERDICT, None)
    if (
        trusted is None
        or trusted.address != address
        or trusted.nbytes != packed.numel()
        or trusted.version != version(packed)
    ):
        check_tensor(packed)
        core.check_packing(address, packed.numel())
        setattr(packed, _VERDICT, Trusted(address, packed.numel(), version(packed)))
    return address


def check_packing(packed: Tensor) -> None:
    """Check a packing of unknown origin, as its first use would. ValueError: it is not intact."""
    address(packed)
