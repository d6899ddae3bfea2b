"""A convolution on a GPU as the planner sees it: images unfolded, then products as of a Linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.convert.cases import Call, ConvCase, Maker
from sparseinfer.convert.cuda_case import CudaLinearCase, scattered_layouts, waited_for
from sparseinfer.convert.cuda_model import gpu_of
from sparseinfer.convert.weights import Weights
from sparseinfer.ops import Bucket, Layout
from sparseinfer.ops.dense import PLAIN

# A dense way besides torch's default.
CHANNELS_LAST = "channels_last"


@dataclass(eq=False)
class CudaConvCase(ConvCase):
    """y = conv(x) + bias on the GPU that the weights are on.

    Candidates are the layouts that a CudaLinearCase offers for the matrix of each group, and torch's own
    convolution, as it is and with weight and images in channels_last. Sparse ones, and the layer as it is,
    are timed with images that lie as the recorded run brought them: `channels_last` or contiguous.
    """

    channels_last: bool

    @cached_property
    def _products(self) -> tuple[CudaLinearCase, ...]:
        """Of each group of channels."""
        groups = self.conv.groups
        parts = zip(_split(self.dense_weights, groups), _split(self.weights, groups), strict=True)
        return tuple(CudaLinearCase(dense, sparse, sparse.weight.dtype) for dense, sparse in parts)

    @property
    def limits(self) -> tuple[int | None, ...]:
        return self._products[0].limits

    @property
    def min_sparsity(self) -> float:
        return self._products[0].min_sparsity

    @property
    def kind(self) -> str:
        return f"conv by {self._products[0].kind}"

    @property
    def shape(self) -> tuple[object, ...]:
        return (*super().shape, CHANNELS_LAST if self.channels_last else "contiguous")

    def compact_layout(self) -> Layout:
        return min(
            scattered_layouts(self.weights),
            key=lambda layout: sum(part.nbytes for part in self.packed(layout)),
        )

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        """One for all groups: by their sparsity together, and blocks that fit each."""
        first, *others = (product.layouts(tokens) for product in self._products)
        blocks = (layout for layout in first if layout.packing == "bsr")
        fit = tuple(layout for layout in blocks if all(layout in other for other in others))
        return (*scattered_layouts(self.weights), *fit)

    def kernel(self, layout: Layout, tokens: int) -> str:
        return layout.kernel(tokens)

    def buckets(self, layout: Layout) -> tuple[Bucket, ...]:
        return layout.buckets(0)

    def _pack(self, layout: Layout) -> tuple[Tensor, ...]:
        return tuple(packed for product in self._products for packed in product.packed(layout))

    def _x(self, tokens: int) -> Tensor:
        x = super()._x(tokens).to(self.weights.weight.device)
        return x.to(memory_format=torch.channels_last) if self.channels_last else x

    @property
    def dense_names(self) -> tuple[str, ...]:
        return (PLAIN, CHANNELS_LAST) if isinstance(self.conv, nn.Conv2d) else (PLAIN,)

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        def maker(x: Tensor, **how: Any) -> Maker:
            def make() -> Call:
                conv = self._dense(self.dense_weights).to(**how)
                return waited_for(lambda: conv(x), x.device)

            return make

        x = self._x(tokens)
        found = {PLAIN: maker(x)}
        if CHANNELS_LAST in self.dense_names:
            last: Any = {"memory_format": torch.channels_last}
            found[CHANNELS_LAST] = maker(x if x.dim() < 4 else x.to(**last), **last)
        return found

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        make = super().sparse(layout, tokens)
        return lambda: waited_for(make(), self.weights.weight.device)

    def predict(self, name: str, tokens: int) -> float:
        """Microseconds on paper: the products, one after another, and before a sparse one the unfolding."""
        dense = name in (PLAIN, CHANNELS_LAST)
        products = sum(product.predict(PLAIN if dense else name, tokens) for product in self._products)
        unfolded = tokens * self.conv.groups * self.weights.weight.shape[1] * self.weights.weight.itemsize
        return products if dense else products + 2 * unfolded / gpu_of(self.weights.weight.device).hbm


def _split(weights: Weights, groups: int) -> list[Weights]:
    """The rows of each group."""
    matrices = weights.weight.chunk(groups)
    biases = [None] * groups if weights.bias is None else weights.bias.chunk(groups)
    return [Weights(weight, bias) for weight, bias in zip(matrices, biases, strict=True)]
