"""Candidates for a convolution on a GPU, computed by unfolding images and multiplying as in a Linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer._timing import Call, waited_for
from sparseinfer.convert.candidates.base import Candidate, Maker
from sparseinfer.convert.candidates.conv import ConvCandidates
from sparseinfer.convert.candidates.cuda_linear import CudaLinearCandidates
from sparseinfer.convert.candidates.cuda_model import gpu_of
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.ops import Bucket, Layout
from sparseinfer.ops.dense import PLAIN

# A dense way besides torch's default.
CHANNELS_LAST = "channels_last"


@dataclass(eq=False)
class CudaConvCandidates(ConvCandidates):
    """y = conv(x) + bias on the GPU that the weights are on.

    They are the layouts of CudaLinearCandidates for the matrix of each group, and torch's own convolution,
    unchanged and with weight and images in channels_last. Sparse candidates and the unchanged layer are timed
    with images in the memory format of the recorded run: `channels_last` or contiguous.
    """

    device = "cuda"

    channels_last: bool

    @cached_property
    def _by_group(self) -> tuple[CudaLinearCandidates, ...]:
        """Of each group of channels, whose images are unfolded to matrices."""
        groups = self.conv.groups
        both = zip(_split(self.dense_weights, groups), _split(self.weights, groups), strict=True)
        return tuple(CudaLinearCandidates(dense, sparse, sparse.weight.dtype) for dense, sparse in both)

    @property
    def kind(self) -> str:
        return f"conv by {self._by_group[0].kind}"

    @property
    def shape(self) -> tuple[object, ...]:
        return (*super().shape, CHANNELS_LAST if self.channels_last else "contiguous")

    def compact_layout(self) -> Layout:
        return min(self._scattered, key=lambda layout: sum(packed.nbytes for packed in self.packed(layout)))

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        """Layouts for all groups: by their overall sparsity; bsr with blocks that fit every group."""
        first, *others = (group.layouts(tokens) for group in self._by_group)
        blocks = (layout for layout in first if layout.packing == "bsr")
        fit = tuple(layout for layout in blocks if all(layout in other for other in others))
        return (*self._scattered, *fit)

    @cached_property
    def _scattered(self) -> tuple[Layout, ...]:
        dtype = self.weights.weight.dtype
        return ops.candidate_layouts("cuda", dtype, dtype, 1, self.weights.sparsity)

    def kernel(self, layout: Layout, tokens: int) -> str:
        return layout.kernel(tokens)

    def buckets(self, layout: Layout) -> tuple[Bucket, ...]:
        return layout.buckets(0)

    def _pack(self, layout: Layout) -> tuple[Tensor, ...]:
        return tuple(packed for group in self._by_group for packed in group.packed(layout))

    def _x(self, tokens: int) -> Tensor:
        x = super()._x(tokens).to(self.weights.weight.device)
        return x.to(memory_format=torch.channels_last) if self.channels_last else x

    @property
    def dense_names(self) -> tuple[str, ...]:
        return (PLAIN, CHANNELS_LAST) if isinstance(self.conv, nn.Conv2d) else (PLAIN,)

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        def maker(x: Tensor, **how: Any) -> Maker:
            def make() -> Call:
                conv = self._dense_copy().to(**how)
                return waited_for(lambda: conv(x), x.device)

            return make

        x = self._x(tokens)
        ways = {PLAIN: maker(x)}
        if CHANNELS_LAST in self.dense_names:
            last: Any = {"memory_format": torch.channels_last}
            ways[CHANNELS_LAST] = maker(x if x.dim() < 4 else x.to(**last), **last)
        return ways

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        make = super().sparse(layout, tokens)
        return lambda: waited_for(make(), self.weights.weight.device)

    def predict(self, candidate: Candidate, tokens: int, *, cold: bool = False) -> float:
        """Predicted microseconds: the products of the groups, and for sparse ones also the unfolding."""
        is_dense = isinstance(candidate, str)
        products = sum(group.predict(PLAIN if is_dense else candidate, tokens) for group in self._by_group)
        unfolded = tokens * self.conv.groups * self.weights.weight.shape[1] * self.weights.weight.itemsize
        written_and_read = 2 * unfolded / gpu_of(self.weights.weight.device).hbm
        return products if is_dense else products + written_and_read


def _split(weights: Weights, groups: int) -> list[Weights]:
    """The rows of each group."""
    matrices = weights.weight.chunk(groups)
    biases = [None] * groups if weights.bias is None else weights.bias.chunk(groups)
    return [Weights(weight, bias) for weight, bias in zip(matrices, biases, strict=True)]
