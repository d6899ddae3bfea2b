"""Candidates for a Linear on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer._timing import Call, sample
from sparseinfer.convert.candidates.base import BaseCandidates, Maker, kind_text
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import dense_candidates, dense_names


@dataclass(eq=False)
class LinearCandidates(BaseCandidates):
    """y = x · Wᵀ + bias. `x_dtype`: what the kernels round x to."""

    x_dtype: torch.dtype

    @property
    def kind(self) -> str:
        return kind_text("linear", self.dense_weights.weight.dtype, self.weights.weight.dtype, self.x_dtype)

    @property
    def shape(self) -> tuple[object, ...]:
        return tuple(self.weights.weight.shape)

    @property
    def title(self) -> str:
        return "{} x {}".format(*self.weights.weight.shape)

    def compact_layout(self) -> Layout:
        return ops.compact_layout(self.weights.weight.dtype, self.x_dtype)

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        weights = self.weights
        return ops.candidate_layouts("cpu", weights.weight.dtype, self.x_dtype, tokens, weights.sparsity)

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
            packings = [packed.clone() for packed in self.packed(layout)]
            return lambda: ops.linear(x, packings, bias, n, plan, "none")

        return make
