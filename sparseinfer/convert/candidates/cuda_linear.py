"""Candidates for a Linear on a GPU. Everything except running them also works without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer._timing import Call, waited_for
from sparseinfer.convert.candidates.base import Candidate, Maker
from sparseinfer.convert.candidates.cuda_model import (
    LAUNCH_US,
    bsr_terms,
    csr_terms,
    decompress_us,
    dense_terms,
    gpu_of,
    longest,
    tiled_terms,
)
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.formats.dtypes import DTYPE_NAMES
from sparseinfer.ops import Layout
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.blob import offsets
from sparseinfer.ops.cuda.tiles import TILED
from sparseinfer.ops.dense import PLAIN, SEMI_STRUCTURED, semi_structured_available

# Blocks are tried where they hold at most so many times the weights that are not zero. Chosen, not measured:
# zeros that a pattern of blocks made leave none, scattered ones leave nearly all of a block.
_BLOCK_FILLING = 1.25

# How many times faster than dense torch's 2:4 products are. Chosen, not measured: tensor cores do such
# products at twice the rate, and large ones are commonly reported to gain 1.5 to 1.7.
_SEMI_STRUCTURED_GAIN = 1.6


@dataclass(eq=False)
class CudaLinearCandidates(LinearCandidates):
    """y = x · Wᵀ + bias on the GPU that the weights are on.

    Sparse candidates are the layouts `bitmap`, `delta4`, `delta8` and `csr`, each in its range of sparsity,
    which for many tokens are decompressed for cuBLAS; and `bsr` where the zeros lie in blocks. Dense ones
    are the unchanged layer, and torch's 2:4 form where the zeros allow it. For a weight in float32 there is
    only `csr`. A time covers a launch and the wait for its end.
    """

    device = "cuda"

    @property
    def kind(self) -> str:
        device = self.weights.weight.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{super().kind} on {name}"

    def compact_layout(self) -> Layout:
        """The smallest layout for unstructured zeros; all have kernels for any number of tokens."""
        return min(self._scattered, key=lambda layout: self.packed(layout)[0].nbytes)

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        return (*self._scattered, *self._blocks)

    @cached_property
    def _scattered(self) -> tuple[Layout, ...]:
        dtype = self.weights.weight.dtype
        return ops.candidate_layouts("cuda", dtype, dtype, 1, self.weights.sparsity)

    @cached_property
    def _blocks(self) -> tuple[Layout, ...]:
        """The largest block that the zeros fit."""
        weight = self.weights.weight
        if weight.dtype == torch.float32:
            return ()
        stored = int(weight.count_nonzero())
        for block in reversed(cuda_packing.BLOCKS):
            if weight.shape[0] % block or weight.shape[1] % block:
                continue
            kept = int(_kept_blocks(weight, block).count_nonzero())
            if kept * block * block <= _BLOCK_FILLING * stored:
                return (Layout("bsr", DTYPE_NAMES[weight.dtype], block, "cuda"),)
        return ()

    def _pack(self, layout: Layout) -> tuple[Tensor, ...]:
        weight = self.weights.weight
        if layout.packing == "bsr":
            return (_packed_blocks(weight, layout.panel),)
        return (cuda_packing.pack_dense(weight, layout.packing),)

    def _x(self, tokens: int) -> Tensor:
        return super()._x(tokens).to(self.weights.weight.device)

    @property
    def dense_names(self) -> tuple[str, ...]:
        return (PLAIN, SEMI_STRUCTURED) if semi_structured_available(self.dense_weights.weight) else (PLAIN,)

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        x, (weight, bias) = self._x(tokens), (self.dense_weights.weight, self.dense_weights.bias)

        def maker(held: Callable[[Tensor], Tensor]) -> Maker:
            def make() -> Call:
                copy = held(weight)
                return waited_for(lambda: F.linear(x, copy, bias), weight.device)

            return make

        ways: dict[str, Callable[[Tensor], Tensor]] = {PLAIN: torch.clone}
        ways[SEMI_STRUCTURED] = torch.sparse.to_sparse_semi_structured
        return {name: maker(ways[name]) for name in self.dense_names}

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        make = super().sparse(layout, tokens)
        return lambda: waited_for(make(), self.weights.weight.device)

    def predict(self, candidate: Candidate, tokens: int, *, cold: bool = False) -> float:
        """Microseconds predicted by cuda_model.py."""
        gpu, weight = gpu_of(self.weights.weight.device), self.weights.weight
        n, k = weight.shape
        if isinstance(candidate, str):
            gain = _SEMI_STRUCTURED_GAIN if candidate == SEMI_STRUCTURED else 1.0
            dense = dense_terms(gpu, self.dense_weights.weight.dtype, n, k, tokens)
            return LAUNCH_US + longest(dense) / gain
        (packed,) = self.packed(candidate)
        kernel = candidate.row(tokens)
        if kernel.op == "decompress":
            return 2 * LAUNCH_US + decompress_us(gpu, n, k, tokens, packed.nbytes)
        if candidate.packing in TILED:
            tile = kernel.tile_tokens
            terms = tiled_terms(gpu, candidate.packing, tile, n, k, tokens, packed.nbytes)
        elif candidate.packing == "bsr":
            terms = bsr_terms(gpu, n, k, tokens, cuda_packing.describe(packed).nnz, packed.nbytes)
        else:
            stored = cuda_packing.describe(packed).nnz
            terms = csr_terms(gpu, weight.dtype, n, k, tokens, stored, packed.nbytes)
        return LAUNCH_US + longest(terms)


def _blocked(weight: Tensor, block: int) -> Tensor:
    """[n / block, k / block, block, block], a view."""
    n, k = weight.shape
    return weight.view(n // block, block, k // block, block).transpose(1, 2)


def _kept_blocks(weight: Tensor, block: int) -> Tensor:
    """Bool [n / block, k / block]: which blocks hold anything."""
    return (_blocked(weight, block) != 0).flatten(2).any(2)


def _packed_blocks(weight: Tensor, block: int) -> Tensor:
    kept = _kept_blocks(weight, block)
    shape = (weight.shape[0], weight.shape[1])
    return cuda_packing.pack_bsr(
        _blocked(weight, block)[kept], offsets(kept.sum(1)), kept.nonzero()[:, 1], shape
    )
