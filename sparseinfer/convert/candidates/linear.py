"""Candidates for a Linear on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer._int8 import row_peaks, row_scales
from sparseinfer._timing import Call, sample
from sparseinfer.convert.candidates.base import BaseCandidates, Candidate, Maker, kind_text
from sparseinfer.convert.candidates.cost_model import predict_dense
from sparseinfer.modules import Int8Linear
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import (
    PREPACKED,
    PREPACKED_BF16,
    PREPACKED_INT8,
    dense_candidates,
    dense_names,
    multiplies_bf16,
    multiplies_int8,
    prepack_bf16,
)

# Microseconds to round one element of x, or to widen one of y. Chosen, not measured: six bytes at 20 GB/s.
_CAST_US = 3e-4


@dataclass(eq=False)
class LinearCandidates(BaseCandidates):
    """y = x · Wᵀ + bias.

    x_dtype     what the kernels round x to
    shorter_x   what they may round it to instead; where weights are of this dtype, so may the dense product
    """

    x_dtype: torch.dtype
    shorter_x: torch.dtype | None = None

    @property
    def kind(self) -> str:
        return " or ".join(self._kind(x_dtype) for x_dtype in self._x_dtypes)

    def _kind(self, x_dtype: torch.dtype) -> str:
        return kind_text("linear", self.dense_weights.weight.dtype, self.weights.weight.dtype, x_dtype)

    @property
    def _x_dtypes(self) -> tuple[torch.dtype, ...]:
        return (self.x_dtype,) if self.shorter_x is None else (self.x_dtype, self.shorter_x)

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
        dtype, sparsity, block = weights.weight.dtype, weights.sparsity, weights.block
        by_x = (
            ops.candidate_layouts("cpu", dtype, x_dtype, tokens, sparsity, block=block)
            for x_dtype in self._x_dtypes
        )
        return tuple(dict.fromkeys(itertools.chain(*by_x)))

    def kernel(self, layout: Layout, tokens: int) -> str:
        return layout.kernel(tokens)

    def buckets(self, layout: Layout) -> tuple[ops.Bucket, ...]:
        return layout.buckets(0)

    def _pack(self, layout: Layout) -> tuple[Tensor, ...]:
        return (layout.pack(self._format(layout)),)

    def _x(self, tokens: int) -> Tensor:
        return sample((tokens, self.weights.weight.shape[1]), self.dense_weights.weight.dtype)

    @property
    def dense_names(self) -> tuple[str, ...]:
        rounded = self.weights.weight
        rounds = self.shorter_x == rounded.dtype == torch.bfloat16 and multiplies_bf16(rounded)
        names = dense_names(self.dense_weights.weight)
        return (*names, *([PREPACKED_BF16] if rounds else []), *([PREPACKED_INT8] if self._in_bytes else []))

    @cached_property
    def _in_bytes(self) -> bool:
        """Whether the dense product may be of int8, too: of the integers that the weight gives by itself."""
        dense, scales = self.dense_weights.weight, self._scales
        if scales is None or self.shorter_x != torch.uint8 or not multiplies_int8(dense):
            return False
        return torch.equal(scales, row_scales(row_peaks(dense), dense.dtype))

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        x, (weight, bias) = self._x(tokens), (self.dense_weights.weight, self.dense_weights.bias)

        def maker(name: str) -> Maker:
            def make() -> Call:
                if name == PREPACKED_INT8:
                    layer = Int8Linear(weight, bias, tokens=tokens)
                    return lambda: layer(x)
                if name == PREPACKED_BF16:
                    linear = prepack_bf16(self.weights.weight, bias, tokens=tokens)
                else:
                    linear = dense_candidates(weight.clone(), bias, tokens=tokens)[name]
                return lambda: linear(x)

            return make

        return {name: maker(name) for name in self.dense_names}

    def nbytes(self, candidate: Candidate) -> int:
        return (
            self.weights.nbytes
            if candidate in (PREPACKED_BF16, PREPACKED_INT8)
            else super().nbytes(candidate)
        )

    def predict(self, candidate: Candidate, tokens: int, *, cold: bool = False) -> float:
        if candidate == PREPACKED_BF16:
            case = self._case(tokens, cold)
            return predict_dense(PREPACKED, "bfloat16", case) + _CAST_US * tokens * (case.n + case.k)
        return super().predict(candidate, tokens, cold=cold)

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        x, bias, n = self._x(tokens), self.weights.bias, self.weights.weight.shape[0]
        plan = ops.format_plan((ops.Bucket(None, 0, layout.kernel(tokens)),))

        def make() -> Call:
            packings = [packed.clone() for packed in self.packed(layout)]
            return lambda: ops.linear(x, packings, bias, n, plan, "none")

        return make
