"""Checks whether up to four vectors are unchanged, in 1 to 2 us, where torch.equal takes 12 us."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from sparseinfer._native import core

Vectors: TypeAlias = "tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]"


class Kept:
    """A copy of the values of up to four vectors of equal length."""

    def __init__(self, values: Vectors) -> None:
        self._values = values
        given = [v for v in values if v is not None]
        self._all = torch.cat([given[0].new_zeros(given[0].shape) if v is None else v for v in values])
        self._nbytes = given[0].nbytes
        # Vectors that had these values when they were last looked at, and where they lay.
        self._vectors: Vectors = (None, None, None, None)
        self._addresses: tuple[int, ...] = ()

    def holds(self, a: Tensor | None, b: Tensor | None, c: Tensor | None, d: Tensor | None) -> bool:
        """Whether these vectors have the kept values."""
        last = self._vectors
        if self._addresses and a is last[0] and b is last[1] and c is last[2] and d is last[3]:
            at = (
                0 if a is None else a.data_ptr(),
                0 if b is None else b.data_ptr(),
                0 if c is None else c.data_ptr(),
                0 if d is None else d.data_ptr(),
            )
            if at == self._addresses:  # so they are as long as they were
                return core.same_vectors(self._all.data_ptr(), *at, self._nbytes)
        vectors = (a, b, c, d)
        if not all(map(_equal, self._values, vectors)):
            return False
        given = [v for v in (*vectors, self._all) if v is not None]
        alike = len({v.dtype for v in given}) == 1 and all(v.is_cpu and v.is_contiguous() for v in given)
        self._vectors = vectors
        self._addresses = tuple(0 if v is None else v.data_ptr() for v in vectors) if alike else ()
        return True


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
