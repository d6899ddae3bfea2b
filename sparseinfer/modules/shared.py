"""Several Linears of one input (q, k and v; gate and up) as one matrix: one call where there were several."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.modules.linear import SparseLinear


class SharedInputLinear(nn.Module):
    """y = x · Wᵀ + bias, where W is rows [start, stop) of a matrix that several such modules share.

    The first of them to see an input computes the rows of all, and the others take theirs from that result:
    a view, whose rows are as far apart as those of the whole. They are meant for modules that are given the
    same tensor, unchanged, one after another; anything else is still computed right, only more often.
    (But tensors made in inference mode do not tell that they were written to: there, an x that is changed in
    place between two of the modules must not have been given to the first of them.)

    One model may serve several threads at once. Inference only.
    """

    def __init__(self, packed: _Shared, index: int, biased: bool) -> None:
        """Use `share`."""
        super().__init__()
        self._biased = biased
        self.start, self.stop = packed.bounds[index], packed.bounds[index + 1]
        self.index = index
        self.in_features, self.out_features = packed.linear.in_features, self.stop - self.start
        # The first holds the matrix as a submodule; the others only know of it, or it would be saved twice.
        self.linear = packed.linear if index == 0 else None
        self._shared = packed

    @classmethod
    def share(
        cls, linear: SparseLinear, sizes: Sequence[int], biased: Sequence[bool] | None = None
    ) -> list[SharedInputLinear]:
        """One module for each size: its rows of `linear`, in order. ValueError: sizes that do not add up.

        biased   which of them have a bias, default all if `linear` has one; the rows of the others add zero
        """
        if sum(sizes) != linear.out_features or not all(size > 0 for size in sizes):
            expected = f"positive sizes that add up to {linear.out_features}"
            raise ValueError(f"sizes: expected {expected}, got {list(sizes)}")
        shared = _Shared(linear, sizes)
        if biased is None:
            biased = [linear.bias is not None] * len(sizes)
        return [cls(shared, index, has_bias) for index, has_bias in enumerate(biased)]

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():
            # No state in a graph. Its compiler drops what is computed twice.
            return self._shared.linear(x)[..., self.start : self.stop]
        return self._shared.rows(self.index, x)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._shared.forget()
        super()._load_from_state_dict(*args)

    @property
    def weight(self) -> Tensor:
        """The dense weight [n, k], made anew at every access: for inspection, not for speed."""
        return self._shared.linear.weight[self.start : self.stop]

    @property
    def dtype(self) -> torch.dtype:
        return self._shared.linear.dtype

    @property
    def plan(self) -> str:
        return self._shared.linear.plan

    @property
    def nbytes(self) -> int:
        """Its share, by rows, of the bytes of the whole."""
        bounds, whole = self._shared.bounds, self._shared.linear.nbytes
        return whole * self.stop // bounds[-1] - whole * self.start // bounds[-1]

    @property
    def bias(self) -> Tensor | None:
        bias = self._shared.linear.bias
        return None if bias is None or not self._biased else bias[self.start : self.stop]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rows {self.start}:{self.stop}"
        )


class _Shared:
    """The matrix and, per thread, the last result."""

    def __init__(self, linear: SparseLinear, sizes: Sequence[int]) -> None:
        self.linear = linear
        self.bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self.forget()

    def rows(self, index: int, x: Tensor) -> Tensor:
        last = self._last
        version = -1 if x.is_inference() else x._version
        if index in last.parts and last.x() is x and last.version == version:
            return last.parts.pop(index)
        y = self.linear(x)
        bounds = self.bounds
        parts = {i: y[..., bounds[i] : bounds[i + 1]] for i in range(len(bounds) - 1)}
        own = parts.pop(index)
        # Who does not take their part shall not keep the result alive longer than x.
        last.x, last.version, last.parts = weakref.ref(x, lambda _: parts.clear()), version, parts
        return own

    def forget(self) -> None:
        self._last = _Last()

    def __getstate__(self) -> dict[str, Any]:
        return {"linear": self.linear, "bounds": self.bounds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()


class _Last(threading.local):
    """An input, held weakly, and what nobody has taken yet of its result: each part is taken once."""

    def __init__(self) -> None:
        self.x: Callable[[], Tensor | None] = lambda: None
        self.version = 0
        self.parts: dict[int, Tensor] = {}
