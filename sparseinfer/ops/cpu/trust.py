"""A packing is checked whole before native code reads it, but not at every call."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.cpu.packing import check_tensor
from sparseinfer.ops.packed import version


@dataclass(frozen=True, slots=True)
class Trusted:
    """A packing that the native check found intact, and which state of its tensor it saw."""

    address: int
    nbytes: int
    version: int


# A packing is checked when it is first used and again when its tensor was written to. The verdict is kept on
# the tensor object: a clone is another object, and an address alone may have been recycled.
_VERDICT = "_sparseinfer_trusted"


def address(packed: Tensor) -> int:
    """Where the packing lies, checked."""
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
