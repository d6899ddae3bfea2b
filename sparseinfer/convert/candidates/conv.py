"""Candidates for a convolution on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer._timing import Call, sample
from sparseinfer.convert.candidates.base import BaseCandidates, Maker, kind_text
from sparseinfer.convert.survey.weights import class_of
from sparseinfer.modules import SparseConv1d, SparseConv2d, pack_groups
from sparseinfer.modules.conv import conv_options, dense_conv, weight_in_channels_last
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN


@dataclass(eq=False)
class ConvCandidates(BaseCandidates):
    """y = conv(x) + bias, by the kernels for many tokens; a token is a pixel of the output.

    `shapes` gives for each number of tokens the shape of x [b, c, ...] or [c, ...] that brings them. The
    weights are matrices [n, c / groups * kernel's size].

    rounded_x   what kernels may round x to; None: nothing
    """

    conv: nn.Conv1d | nn.Conv2d
    shapes: Mapping[int, tuple[int, ...]]
    rounded_x: torch.dtype | None = field(default=None, kw_only=True)

    @property
    def kind(self) -> str:
        dense, sparse = self.dense_weights.weight.dtype, self.weights.weight.dtype
        x_dtypes = (dense,) if self.rounded_x is None else (dense, self.rounded_x)
        return " or ".join(kind_text("conv", dense, sparse, x_dtype) for x_dtype in x_dtypes)

    @property
    def shape(self) -> tuple[object, ...]:
        return (*self.weights.weight.shape, *conv_options(self.conv).values(), *self.shapes.values())

    @property
    def title(self) -> str:
        return "conv {} x {}".format(*self.weights.weight.shape)

    def compact_layout(self) -> Layout:
        return ops.compact_layout(self.weights.weight.dtype, torch.float32)

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        dtype, sparsity = self.weights.weight.dtype, self.weights.sparsity
        by_x = (
            ops.candidate_layouts("cpu", dtype, x_dtype, tokens, sparsity, conv=True, block=self._block)
            for x_dtype in (dtype, self.rounded_x)
            if x_dtype is not None
        )
        return tuple(dict.fromkeys(itertools.chain(*by_x)))

    @property
    def _block(self) -> tuple[int, int] | None:
        """Blocks that no boundary of two groups cuts."""
        block = self.weights.block
        rows = len(self.weights.weight) // self.conv.groups
        return None if block is None or rows % block[0] else block

    def kernel(self, layout: Layout, tokens: int) -> str:
        return layout.conv_kernel(tokens)

    def buckets(self, layout: Layout) -> tuple[ops.Bucket, ...]:
        return layout.conv_buckets(0)

    def _pack(self, layout: Layout) -> tuple[Tensor, ...]:
        return tuple(pack_groups(self._format(layout), [layout], self.conv.groups))

    def _x(self, tokens: int) -> Tensor:
        return sample(self.shapes[tokens], self.dense_weights.weight.dtype)

    @property
    def dense_names(self) -> tuple[str, ...]:
        return (PLAIN,)

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        x = self._x(tokens)

        def make() -> Call:
            conv = self._dense_copy()
            return lambda: conv(x)

        return {PLAIN: make}

    def _dense_copy(self) -> nn.Conv1d | nn.Conv2d:
        """The layer with copies of the dense weights."""
        weight = self.dense_weights.weight.reshape(self.conv.weight.shape).clone()
        bias = None if self.dense_weights.bias is None else self.dense_weights.bias.clone()
        dense: nn.Conv1d | nn.Conv2d = dense_conv(class_of(self.conv), self.conv, weight, bias)
        return dense

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        x, buckets = self._x(tokens), self.buckets(layout)
        dtype = self.dense_weights.weight.dtype

        def make() -> Call:
            copies = [packed.clone() for packed in self.packed(layout)]
            conv = sparse_conv(self.conv, copies, self.weights.bias, buckets, dtype)
            return lambda: conv(x)

        return make


def sparse_conv(
    conv: nn.Conv1d | nn.Conv2d,
    packings: Sequence[Tensor],
    bias: Tensor | None,
    buckets: Sequence[ops.Bucket],
    dtype: torch.dtype,
) -> SparseConv1d | SparseConv2d:
    """A convolution layer with its weight in these packings; x and y have this dtype."""
    return (SparseConv1d if isinstance(conv, nn.Conv1d) else SparseConv2d)(
        packings,
        bias,
        buckets=buckets,
        dtype=dtype,
        channels_last=weight_in_channels_last(conv),
        **conv_options(conv),
    )
