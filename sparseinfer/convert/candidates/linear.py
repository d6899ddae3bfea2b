"""A layer as the planner sees it: its matrix, and everything that could compute it, ready to be timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer._timing import sample
from sparseinfer.convert.cost_model import predict
from sparseinfer.convert.weights import Weights, class_of
from sparseinfer.formats import CSR
from sparseinfer.modules import PrepackedLinear, SparseConv1d, SparseConv2d, SparseLinear, pack_groups
from sparseinfer.modules.conv import conv_options, dense_conv, weight_in_channels_last
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN, dense_candidates, dense_names

if TYPE_CHECKING:
    from sparseinfer.convert.planner import Plan

# Below this sparsity no layout has beaten the best dense at any token count, so none is tried.
MIN_SPARSITY = 0.3

# Other tiles begin there.
CPU_LIMITS = (4, ops.FEW_TOKENS, 47, None)

Call = Callable[[], object]
# Makes a call that holds weights of its own, so that several of them take turns in memory.
Maker = Callable[[], Call]


class Case(Protocol):
    """What `plan` and `Timer` want to know."""

    dense_weights: Weights
    weights: Weights

    @property
    def kind(self) -> str:
        """Operator and dtypes: of the dense layer, of the sparse weight, and what the kernels round x to."""

    @property
    def shape(self) -> tuple[object, ...]:
        """All else that times depend on, besides the number of tokens and the weight's zeros."""

    @property
    def title(self) -> str:
        """For a progress bar."""

    def compact_layout(self) -> Layout:
        """Of fewest bytes, with kernels for any number of tokens."""

    def layouts(self, tokens: int) -> tuple[Layout, ...]: ...

    def kernel(self, layout: Layout, tokens: int) -> str:
        """Base name of the kernel that reads this layout."""

    def buckets(self, layout: Layout) -> tuple[ops.Bucket, ...]:
        """A plan for any number of tokens out of this layout alone, as packing number 0."""

    def packed(self, layout: Layout) -> tuple[Tensor, ...]:
        """The weight in a layout: one packing, or one per group of channels. Made at most once."""

    @property
    def limits(self) -> tuple[int | None, ...]:
        """Upper ends of the token buckets a layer may have, ascending; None = no limit."""

    @property
    def min_sparsity(self) -> float:
        """Below it no layout is tried."""

    def predict(self, name: str, tokens: int) -> float:
        """Microseconds of a dense way or a layout, without running it; infinity if nothing is known of it."""

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Keys of `dense`, without making anything."""

    def dense(self, tokens: int) -> Mapping[str, Maker]: ...

    def module(self, plan: Plan) -> nn.Module | None:
        """What takes the layer's place; None: nothing."""

    def compact_module(self) -> nn.Module:
        """The layer in its compact layout."""

    def sparse(self, layout: Layout, tokens: int) -> Maker: ...


@dataclass(eq=False)
class _CpuCase(ABC):
    """What a linear layer and a convolution have in common.

    dense_weights   as they are now; x and y have its dtype
    weights         what becomes sparse, perhaps in a shorter dtype
    """

    dense_weights: Weights
    weights: Weights
    _packed: dict[Layout, tuple[Tensor, ...]] = field(default_factory=dict, init=False)

    @property
    def limits(self) -> tuple[int | None, ...]:
        return CPU_LIMITS

    @property
    def min_sparsity(self) -> float:
        return MIN_SPARSITY

    @property
    @abstractmethod
    def kind(self) -> str: ...

    def predict(self, name: str, tokens: int) -> float:
        """By the cost model, for this instruction set and number of threads."""
        where = (ops.active_isa(), torch.get_num_threads())
        return predict(self.kind, name, self.weights.weight.numel(), self.weights.sparsity, tokens, *where)

    def packed(self, layout: Layout) -> tuple[Tensor, ...]:
        if layout not in self._packed:
            self._packed[layout] = self._pack(layout)
        return self._packed[layout]

    @abstractmethod
    def _pack(self, layout: Layout) -> tuple[Tensor, ...]: ...

    @cached_property
    def _format(self) -> CSR:
        return CSR.from_dense(self.weights.weight)

    @abstractmethod
    def sparse_module(
        self, packings: Sequence[tuple[Tensor, ...]], buckets: Sequence[ops.Bucket]
    ) -> nn.Module:
        """The layer by packings, each of one group or several."""

    @abstractmethod
    def compact_layout(self) -> Layout: ...

    @abstractmethod
    def buckets(self, layout: Layout) -> tuple[ops.Bucket, ...]: ...

    def compact_module(self) -> nn.Module:
        layout = self.compact_layout()
        return self.sparse_module([self.packed(layout)], self.buckets(layout))


@dataclass(eq=False)
class LinearCase(_CpuCase):
    """y = x · Wᵀ + bias. `x_dtype`: what the kernels round x to."""

    x_dtype: torch.dtype

    @property
    def kind(self) -> str:
        return _kind("linear", self.dense_weights.weight.dtype, self.weights.weight.dtype, self.x_dtype)

    @property
    def shape(self) -> tuple[object, ...]:
        return tuple(self.weights.weight.shape)

    @property
    def title(self) -> str:
        return "{} x {}".format(*self.weights.weight.shape)

    def compact_layout(self) -> Layout:
        return ops.compact_layout(self.weights.weight.dtype, self.x_dtype)

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        found = ops.layouts(self.weights.weight.dtype, self.x_dtype, tokens)
        return tuple(layout for layout in found if ops.may_win(layout, self.weights.sparsity))

    def kernel(self, layout: Layout, tokens: int) -> str:
        return layout.kernel(tokens)

    def buckets(self, layout: Layout) -> tuple[ops.Bucket, ...]:
        return layout.buckets(0)

    def _pack(self, layout: Layout) -> tuple[Tensor, ...]:
        return (layout.pack(self._format),)

    def _x(self, tokens: int) -> Tensor:
        return sample((tokens, self.weights.weight.shape[1]), self.dense_weights.weight.dtype)

    @property
    def dense_names(self) -> tuple[str, ...]:
        return dense_names(self.dense_weights.weight)

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        x, (weight, bias) = self._x(tokens), (self.dense_weights.weight, self.dense_weights.bias)

        def maker(name: str) -> Maker:
            def make() -> Call:
                linear = dense_candidates(weight.clone(), bias, tokens=tokens)[name]
                return lambda: linear(x)

            return make

        return {name: maker(name) for name in self.dense_names}

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        x, bias, n = self._x(tokens), self.weights.bias, self.weights.weight.shape[0]
        plan = ops.format_plan((ops.Bucket(None, 0, layout.kernel(tokens)),))

        def make() -> Call:
            blobs = [packed.clone() for packed in self.packed(layout)]
            return lambda: ops.linear(x, blobs, bias, n, plan, "none")

        return make

    def every_layout(self) -> tuple[Layout, ...]:
        """For any number of tokens."""
        found = [
            layout
            for m in (1, 8, 16, 64)
            for layout in ops.layouts(self.weights.weight.dtype, self.x_dtype, m)
        ]
        return tuple(dict.fromkeys((*found, self.compact_layout())))

    def module(self, plan: Plan) -> nn.Module | None:
        if plan.is_sparse:
            return self.sparse_module(plan.packings, plan.buckets)
        if plan.prepack:
            weight, bias = self.dense_weights.weight, self.dense_weights.bias
            return PrepackedLinear(weight, bias, tokens=plan.times[-1].tokens)
        return None

    def sparse_module(
        self, packings: Sequence[tuple[Tensor, ...]], buckets: Sequence[ops.Bucket]
    ) -> SparseLinear:
        dtype = self.dense_weights.weight.dtype
        each = [packed for (packed,) in packings]
        return SparseLinear(each, self.weights.bias, buckets=buckets, dtype=dtype)


@dataclass(eq=False)
class ConvCase(_CpuCase):
    """y = conv(x) + bias, by the kernels for many tokens; a token is a pixel of the output.

    `shapes` gives for each number of tokens the shape of x [b, c, ...] or [c, ...] that brings them. The
    weights are matrices [n, c / groups * kernel's size].
    """

    conv: nn.Conv1d | nn.Conv2d
    shapes: Mapping[int, tuple[int, ...]]

    @property
    def kind(self) -> str:
        dtype = self.dense_weights.weight.dtype
        return _kind("conv", dtype, self.weights.weight.dtype, dtype)

    @property
    def shape(self) -> tuple[object, ...]:
        conv = self.conv
        how = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
        return (*self.weights.weight.shape, *how, *self.shapes.values())

    @property
    def title(self) -> str:
        return "conv {} x {}".format(*self.weights.weight.shape)

    def compact_layout(self) -> Layout:
        return ops.compact_layout(self.weights.weight.dtype, torch.float32)

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        found = ops.layouts(torch.float32, torch.float32, max(tokens, ops.FEW_TOKENS + 1))
        return tuple(layout for layout in found if ops.may_win(layout, self.weights.sparsity))

    def kernel(self, layout: Layout, tokens: int) -> str:
        return layout.kernel(max(tokens, ops.FEW_TOKENS + 1))

    def buckets(self, layout: Layout) -> tuple[ops.Bucket, ...]:
        return (ops.Bucket(None, 0, self.kernel(layout, 1)),)

    def _pack(self, layout: Layout) -> tuple[Tensor, ...]:
        return tuple(pack_groups(self._format, [layout], self.conv.groups))

    def _x(self, tokens: int) -> Tensor:
        return sample(self.shapes[tokens], self.dense_weights.weight.dtype)

    @property
    def dense_names(self) -> tuple[str, ...]:
        return (PLAIN,)

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        x = self._x(tokens)

        def make() -> Call:
            conv = self._dense(self.dense_weights)
            return lambda: conv(x)

        return {PLAIN: make}

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        x = self._x(tokens)
        buckets = self.buckets(layout)

        def make() -> Call:
            conv = self._sparse([packed.clone() for packed in self.packed(layout)], buckets)
            return lambda: conv(x)

        return make

    def module(self, plan: Plan) -> nn.Module | None:
        return self.sparse_module(plan.packings, plan.buckets) if plan.is_sparse else None

    def sparse_module(
        self, packings: Sequence[tuple[Tensor, ...]], buckets: Sequence[ops.Bucket]
    ) -> nn.Module:
        return self._sparse([packed for group in packings for packed in group], buckets)

    def _sparse(
        self, packings: Sequence[Tensor], buckets: Sequence[ops.Bucket]
    ) -> SparseConv1d | SparseConv2d:
        conv = self.conv
        return (SparseConv1d if isinstance(conv, nn.Conv1d) else SparseConv2d)(
            packings,
            self.weights.bias,
            buckets=buckets,
            dtype=self.dense_weights.weight.dtype,
            channels_last=weight_in_channels_last(conv),
            **conv_options(conv),
        )

    def _dense(self, weights: Weights) -> nn.Conv1d | nn.Conv2d:
        """The layer with other weights, copied."""
        weight, bias = weights.weight.reshape(self.conv.weight.shape).clone(), weights.bias
        dense: nn.Conv1d | nn.Conv2d = dense_conv(
            class_of(self.conv), self.conv, weight, None if bias is None else bias.clone()
        )
        return dense


def _kind(op: str, *dtypes: torch.dtype) -> str:
    return " ".join([op, *(str(dtype).removeprefix("torch.") for dtype in dtypes)])
