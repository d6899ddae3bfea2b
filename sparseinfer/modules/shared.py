"""Computes Linears that get the same input (q, k and v; gate and up) as one matrix in one call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.modules.linear import SparseLinear
from sparseinfer.modules.stand_in import StandIn, StateLoad


class SharedInputLinear(StandIn):
    """y = x · Wᵀ + bias, where W is rows [start, stop) of a matrix that several such modules share.

    During a forward of a module that contains them all (see `share_in`), the first one called computes the
    rows of all, each into its own tensor. The others return their tensor if they get the same, unmodified
    input. In all other cases each computes only its own rows. Nothing is kept from one forward to the next.

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
        linear = packed.linear
        self._register_placeholder(linear.dtype, linear.device, needed=self.linear is None)

    @classmethod
    def share(
        cls, linear: SparseLinear, sizes: Sequence[int], biased: Sequence[bool] | None = None
    ) -> list[SharedInputLinear]:
        """One module per size, for consecutive rows of `linear`. ValueError: the sizes do not add up.

        biased   which modules have a bias, default all if `linear` has one; the others add zero
        """
        if sum(sizes) != linear.out_features or not all(size > 0 for size in sizes):
            expected = f"positive sizes that add up to {linear.out_features}"
            raise ValueError(f"sizes: expected {expected}, got {list(sizes)}")
        shared = _Shared(linear, sizes)
        if biased is None:
            biased = [linear.bias is not None] * len(sizes)
        return [cls(shared, index, has_bias) for index, has_bias in enumerate(biased)]

    def forward(self, input: Tensor) -> Tensor:
        if ops.watched(input):
            # No state in a graph. Its compiler drops what is computed twice.
            rows = self._shared.linear(input)[..., self.start : self.stop]
            return rows.clone(memory_format=torch.contiguous_format)
        return self._shared.rows(self.index, input)

    def all_in(self, parent: nn.Module) -> list[nn.Module]:
        """The modules in `parent` that share the matrix with this one, including itself."""
        return [m for m in parent.modules() if isinstance(m, SharedInputLinear) and m._shared is self._shared]

    def _load(self, load: StateLoad) -> None:
        self._shared.forget()
        super()._load(load)

    @property
    def weight(self) -> Tensor:
        """The dense weight [n, k], computed at every access: for inspection, not for speed."""
        return self._shared.linear.weight[self.start : self.stop]

    @property
    def whole(self) -> SparseLinear:
        """The layer whose matrix is shared."""
        return self._shared.linear

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight."""
        return self._shared.linear.dtype

    @property
    def plan(self) -> str:
        """That of the matrix which the layer shares."""
        return self._shared.linear.plan

    @property
    def nbytes(self) -> int:
        """The module's share, by rows, of the bytes of the shared matrix."""
        bounds, whole = self._shared.bounds, self._shared.linear.nbytes
        return whole * self.stop // bounds[-1] - whole * self.start // bounds[-1]

    @property
    def bias(self) -> Tensor | None:
        """[out_features], a view of the shared one; None without a bias."""
        bias = self._shared.linear.bias
        return None if bias is None or not self._biased else bias[self.start : self.stop]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rows {self.start}:{self.stop}"
        )


def share_in(parent: nn.Module, part: SharedInputLinear, *, checked: bool = True) -> None:
    """Let the modules that share a matrix with `part` share results during a forward of `parent`.

    checked   compare the values of x, because torch's version counter misses some writes; False: the parent's
              forward is known to write nothing in between
    """
    part._shared.checked = checked
    parent.register_forward_pre_hook(_Opens(part._shared))
    parent.register_forward_hook(_Closes(part._shared), always_call=True)


def unshare_in(parent: nn.Module) -> None:
    """Undo `share_in` for all its modules."""
    for hooks in (parent._forward_pre_hooks, parent._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, (_Opens, _Closes))]:
            del hooks[key]
            parent._forward_hooks_always_called.pop(key, None)


class _Shared:
    """The matrix and, per thread, what the forward that is under way has computed."""

    def __init__(self, linear: SparseLinear, sizes: Sequence[int]) -> None:
        self.linear = linear
        self.sizes = tuple(sizes)
        self.bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self.checked = True
        self.forget()

    def rows(self, index: int, x: Tensor) -> Tensor:
        last = self._last
        if not last.open:
            return self._computed(x, [i == index for i in range(len(self.sizes))])[index]
        if index in last.parts and last.x() is x and last.unchanged(x):
            return last.parts.pop(index)
        parts = dict(enumerate(self._computed(x, [True] * len(self.sizes))))
        part = parts.pop(index)
        # Who does not take their part shall not keep the result alive longer than x.
        last.x, last.parts = weakref.ref(x, lambda _: parts.clear()), parts
        last.note(x, self.checked)
        return part

    def _computed(self, x: Tensor, wanted: Sequence[bool]) -> list[Any]:
        if x.is_cpu:
            return list(self.linear.parts(x, self.sizes, wanted))
        pieces = self.linear(x).split(self.sizes, dim=-1)
        form = torch.contiguous_format
        return [y.clone(memory_format=form) if want else None for y, want in zip(pieces, wanted, strict=True)]

    def enter(self) -> None:
        self._last.clear(is_open=True)

    def leave(self) -> None:
        self._last.clear(is_open=False)

    def forget(self) -> None:
        self._last = _Last()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()


class _Last(threading.local):
    """An input, held weakly, and what nobody has taken yet of its result: each part is taken once.

    open   whether the forward of a module that contains all who share is under way
    """

    def __init__(self) -> None:
        self.clear(is_open=False)

    def clear(self, *, is_open: bool) -> None:
        self.open = is_open
        self.x: Callable[[], Tensor | None] = lambda: None
        self.parts: dict[int, Tensor] = {}
        self.version: int | None = None
        self.copy: Tensor | None = None

    def note(self, x: Tensor, checked: bool) -> None:
        """Record the state of x; if `checked`, also its values.

        torch's version counter misses writes by `.data`, in inference mode, and to memory that another object
        owns, such as a numpy array.
        """
        self.version = None if x.is_inference() else x._version
        self.copy = x.clone() if checked else None

    def unchanged(self, x: Tensor) -> bool:
        if self.version is not None and x._version != self.version:
            return False
        return self.copy is None or (self.copy.shape == x.shape and torch.equal(self.copy, x))


class _Opens:
    """A forward pre-hook: a class, so that models can be copied and pickled with it."""

    def __init__(self, shared: _Shared) -> None:
        self.shared = shared

    def __call__(self, module: nn.Module, args: object) -> None:
        if not torch.compiler.is_compiling():
            self.shared.enter()


class _Closes(_Opens):
    """Its forward hook."""

    def __call__(self, module: nn.Module, args: object, result: object = None) -> None:
        if not torch.compiler.is_compiling():
            self.shared.leave()
