"""The base of layers whose weight is held as packings: buffers, state_dict, copies, moves between devices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.formats.dtypes import WEIGHT_DTYPES
from sparseinfer.modules._held_weight import HeldWeight, checked_bias, destination
from sparseinfer.modules._tracing import unseen
from sparseinfer.modules.groups import join_rows, pack_groups
from sparseinfer.ops.backend import made_from

Self = TypeVar("Self", bound="PackedLayer")

_PARTS = ("values", "crow_indices", "col_indices")
_SCALED_PARTS = (*_PARTS, "scales")  # of int8

_pickles_packings: ContextVar[bool] = ContextVar("pickles_packings", default=False)


@contextmanager
def packings_pickled() -> Iterator[None]:
    """Within it layers are pickled with their packings: for processes of this machine with this build."""
    token = _pickles_packings.set(True)
    try:
        yield
    finally:
        _pickles_packings.reset(token)


class PackedLayer(HeldWeight):
    """A layer whose weight, as a matrix [n, k], lives only in packings.

    The packings are uint8 buffers `packing_0`, ... that `state_dict()` leaves out: it holds
    `values`, `crow_indices`, `col_indices` and `bias` instead, bit for bit, and of int8 `scales`. Each layout
    has one packing or,
    if the weight is split into groups of rows, one packing per group, in order. The weight's dtype may be
    shorter than `dtype`, which is that of the bias and of the dense layer.

    Packings are for one kind of device. A layer that moves to another kind packs its weight again there, for
    any number of tokens, and gets its original layouts when it moves back.
    """

    plan: str

    @property
    def _weight_keys(self) -> tuple[str, ...]:  # type: ignore[override]
        return _SCALED_PARTS if self._info.dtype == "i8" else _PARTS

    def __init__(
        self,
        packings: Sequence[Tensor],
        bias: Tensor | None,
        buckets: Sequence[ops.Bucket] | None,
        activation: str,
        dtype: torch.dtype | None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        infos = _described(packings, groups)
        if buckets is None:
            buckets = self._default_buckets(ops.Layout.of(infos[0]))
        for bucket in buckets:
            if not 0 <= bucket.packing < len(packings) // groups:
                raise ValueError(f"buckets: expected packing < {len(packings) // groups}, got {bucket}")
        self.plan = ops.format_plan(tuple(buckets))
        self.activation = activation
        self._groups = groups
        self._packing_names = tuple(f"packing_{i}" for i in range(len(packings)))
        held = WEIGHT_DTYPES[infos[0].dtype]
        self.dtype = dtype or (torch.float32 if held == torch.int8 else held)
        # Layouts, plan and block size that the layer had on the other kind of device.
        self._left: tuple[list[ops.Layout], str, tuple[int, int]] | None = None
        device = packings[0].device
        self._register_bias(checked_bias(bias, infos[0].n * groups, self.dtype, device), self.dtype, device)
        for name, packed in zip(self._packing_names, packings, strict=True):
            self.register_buffer(name, packed, persistent=False)
        self._note_packed()

    def _note_packed(self) -> None:
        """What the packings are, for constants: torch.export puts others in their place while it traces."""
        self._noted = (tuple(self._packings()),)

    @staticmethod
    def _default_buckets(layout: ops.Layout) -> tuple[ops.Bucket, ...]:
        return layout.buckets(0)

    def dense_matrix(self) -> Tensor:
        with unseen():
            return self.to_format().to_dense().to(self._packings()[0].device, self.dtype)

    def constant_matrix(self) -> Tensor:
        packings = self._noted[0]
        return self._format_of(packings).to_dense().to(packings[0].device, self.dtype)

    def to_format(self) -> CSR | BSR:
        """The weight [n, k] in its portable format, unpacked from the first layout's packings."""
        return self._format_of(self._packings())

    def _format_of(self, packings: Sequence[Tensor]) -> CSR | BSR:
        return join_rows([ops.unpack(packed) for packed in packings[: self._groups]])

    @property
    def nnz(self) -> int:
        """Stored values."""
        return sum(ops.describe(packed).nnz for packed in self._packings()[: self._groups])

    @property
    def sparsity(self) -> float:
        """1 - nnz / (n * k); 0.0 for a weight without elements."""
        n, k = self.matrix_shape
        return 1.0 - self.nnz / (n * k) if n * k else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of everything the layer holds: its packings and the bias."""
        return sum(held.nbytes for held in (*self.parameters(), *self.buffers()))

    @property
    def dense_nbytes(self) -> int:
        """Bytes of weight and bias if the layer were dense."""
        n, k = self.matrix_shape
        return n * (k + (self.bias is not None)) * self.dtype.itemsize

    @property
    def device(self) -> torch.device:
        """Where the packings are."""
        return self._packings()[0].device

    @property
    def _info(self) -> ops.PackedInfo:
        return ops.describe(getattr(self, self._packing_names[0]))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        info = self._info
        return info.n * self._groups, info.k

    def _packings(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._packing_names]

    def _layouts(self) -> list[ops.Layout]:
        return [ops.Layout.of(ops.describe(packed)) for packed in self._packings()[:: self._groups]]

    def _figures(self) -> str:
        """What `extra_repr` says of every layer."""
        packings = ", ".join(map(str, self._layouts()))
        return f"bias={self.bias is not None}, sparsity={self.sparsity:.3f}, packings=[{packings}]"

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        target = destination(self, self.dtype, fn)
        if target.type == self._packings()[0].device.type:
            super()._apply(fn, recurse)
            self._note_packed()
            return self
        fmt = _readable_on(target, self.to_format())
        layouts, plan = self._layouts_on(target, fmt)
        if self._left is not None:
            layouts, plan, block = self._left
            if layouts[0].format == "bsr" and isinstance(fmt, CSR):
                fmt = BSR.from_dense(fmt.to_dense(), block)
        left = self._layouts(), self.plan, self._info.block_size
        packings = pack_groups(fmt, layouts, self._groups, target)
        self._move_parameters(fn)
        self._left = left
        for name in self._packing_names:
            del self._buffers[name]
            self._non_persistent_buffers_set.discard(name)
        self.plan = plan
        self._packing_names = tuple(f"packing_{i}" for i in range(len(packings)))
        for name, packed in zip(self._packing_names, packings, strict=True):
            self.register_buffer(name, packed, persistent=False)
        self._note_packed()
        return self

    def _layouts_on(self, device: torch.device, fmt: CSR | BSR) -> tuple[list[ops.Layout], str]:
        """A layout for any number of tokens where the layer has not been yet, and its plan."""
        layout = ops.Layout.on_cuda(fmt) if device.type == "cuda" else ops.Layout.on_cpu(fmt)
        return [layout], ops.format_plan(self._default_buckets(layout))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        fmt = self.to_format()
        for part in self._weight_keys:
            destination[prefix + part] = getattr(fmt, part)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _form_in(self, state_dict: dict[str, Any], prefix: str) -> list[Tensor]:
        """Packings like those of the layer."""
        try:
            fmt = self._fitting_format(*(state_dict[prefix + part] for part in self._weight_keys))
            return pack_groups(fmt, self._layouts(), self._groups, self._packings()[0].device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"While loading {prefix}values and its indices: {error}") from error

    def _take_form(self, form: list[Tensor]) -> None:
        for name, packed in zip(self._packing_names, form, strict=True):
            setattr(self, name, packed)
        self._times_held += 1
        self._note_packed()

    def _fitting_format(
        self, values: Tensor, crow: Tensor, col: Tensor, scales: Tensor | None = None
    ) -> CSR | BSR:
        """The format that these tensors are, if it is a weight of this layer: same kind, shape and dtype."""
        fmt = made_from(self._info)(values, crow, col, self.matrix_shape, scales)
        expected = WEIGHT_DTYPES[self._info.dtype]
        if fmt.dtype != expected:
            raise TypeError(f"values: expected dtype {expected}, got {fmt.dtype}")
        return fmt

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: the format and the packings' layouts, because a packing belongs to one machine."""
        state, packings = self.__dict__.copy(), set(self._packing_names)
        del state["_noted"]
        if _pickles_packings.get():
            return state
        state["_buffers"] = {name: buffer for name, buffer in self._buffers.items() if name not in packings}
        state["format"] = self.to_format()
        state["layouts"] = self._layouts()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        fmt, layouts = state.pop("format", None), state.pop("layouts", None)
        super().__setstate__(state)
        if fmt is not None:
            packings = pack_groups(fmt, layouts, self._groups)
            for name, packed in zip(self._packing_names, packings, strict=True):
                self._buffers[name] = packed
        self._note_packed()


def _readable_on(device: torch.device, fmt: CSR | BSR) -> CSR | BSR:
    """The format, or CSR where the kernels of the device read no blocks of its size and dtype."""
    if device.type != "cuda" or not isinstance(fmt, BSR):
        return fmt
    try:
        ops.Layout.on_cuda(fmt)
    except (TypeError, ValueError):
        return fmt.to_csr()
    return fmt


def _described(packings: Sequence[Tensor], groups: int) -> list[ops.PackedInfo]:
    """What they hold. ValueError unless it is one matrix in each layout, a packing for each group of rows."""
    if not packings:
        raise ValueError("packings: expected at least one, got none")
    if groups < 1 or len(packings) % groups:
        raise ValueError(f"packings: expected one of each layout for {groups} groups, got {len(packings)}")
    infos = [ops.describe(packed) for packed in packings]
    for first in range(groups):
        if len({(info.n, info.k, info.nnz, info.dtype) for info in infos[first::groups]}) != 1:
            raise ValueError(f"packings: expected packings of one matrix, got {infos[first::groups]}")
    for first in range(0, len(infos), groups):
        of_layout = infos[first : first + groups]
        if len({(info.n, info.k, info.dtype, ops.Layout.of(info)) for info in of_layout}) != 1:
            raise ValueError(f"packings: expected groups of one shape in one layout, got {of_layout}")
    return infos
