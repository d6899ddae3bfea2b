"""A Linear on a GPU as the planner sees it. Everything but the calls themselves works on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.convert.cases import MIN_SPARSITY, Call, LinearCase, Maker
from sparseinfer.convert.cuda_model import (
    LAUNCH_US,
    bsr_terms,
    csr_terms,
    decompress_us,
    dense_terms,
    gpu_of,
    longest,
    tiled_terms,
)
from sparseinfer.convert.weights import Weights
from sparseinfer.formats.dtypes import DTYPE_NAMES
from sparseinfer.ops import CUDA_LIMITS, Layout
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.blob import offsets
from sparseinfer.ops.cuda.tiles import TILED
from sparseinfer.ops.dense import PLAIN, SEMI_STRUCTURED, semi_structured_available

# Blocks are tried where they hold at most so many times the weights that are not zero.
_BLOCK_FILLING = 1.25

# Sparsities at which a packing of scattered zeros in 16 bits may be fastest: by bytes and instructions.
HALF_BOUNDS = {"bitmap": (0.2, 0.85), "delta4": (0.6, 0.9), "delta8": (0.8, 1.0), "csr": (0.95, 1.0)}

# Of torch's 2:4 products, in time.
_SEMI_STRUCTURED_GAIN = 1.6


@dataclass(eq=False)
class CudaLinearCase(LinearCase):
    """y = x · Wᵀ + bias on the GPU that the weights are on.

    Candidates are, by sparsity, `bitmap`, `delta4`, `delta8` and `csr`, which for many tokens are written out
    densely and multiplied by cuBLAS, `bsr` where zeros lie in blocks, and the dense layer, in torch's 2:4
    form too where the zeros allow it. A weight in float32 is offered `csr` alone. Times hold a launch and the
    wait for its end.
    """

    @property
    def limits(self) -> tuple[int | None, ...]:
        return CUDA_LIMITS

    @property
    def kind(self) -> str:
        device = self.weights.weight.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{super().kind} on {name}"

    @property
    def min_sparsity(self) -> float:
        bounds = [(MIN_SPARSITY, 1.0)] if self._is_f32 else HALF_BOUNDS.values()
        return min(low for low, _ in bounds)

    def compact_layout(self) -> Layout:
        """Of those for scattered zeros; they have kernels for any number of tokens."""
        return min(self._scattered, key=lambda layout: self.packed(layout)[0].nbytes)

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        return (*self._scattered, *self._blocks)

    @cached_property
    def _scattered(self) -> tuple[Layout, ...]:
        return scattered_layouts(self.weights)

    @property
    def _is_f32(self) -> bool:
        return self.weights.weight.dtype == torch.float32

    @property
    def _storage(self) -> str:
        return DTYPE_NAMES[self.weights.weight.dtype]

    @cached_property
    def _blocks(self) -> tuple[Layout, ...]:
        """The largest block that the zeros fit."""
        weight = self.weights.weight
        if self._is_f32:
            return ()
        stored = int(weight.count_nonzero())
        for block in reversed(cuda_packing.BLOCKS):
            if weight.shape[0] % block or weight.shape[1] % block:
                continue
            kept = int(_kept_blocks(weight, block).count_nonzero())
            if kept * block * block <= _BLOCK_FILLING * stored:
                return (Layout("bsr", self._storage, block, "cuda"),)
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

    def predict(self, name: str, tokens: int) -> float:
        """Microseconds on paper, by cuda_model.py."""
        gpu, (n, k) = gpu_of(self.weights.weight.device), self.weights.weight.shape
        if name in (PLAIN, SEMI_STRUCTURED):
            gain = 1.0 if name == PLAIN else _SEMI_STRUCTURED_GAIN
            dense = dense_terms(gpu, self.dense_weights.weight.dtype, n, k, tokens)
            return LAUNCH_US + longest(dense) / gain
        scattered = (Layout(packing, self._storage, device="cuda") for packing in ("csr", *TILED))
        layout = next(layout for layout in (*scattered, *self._blocks) if str(layout) == name)
        (packed,) = self.packed(layout)
        kernel, nbytes = layout.kernel(tokens), packed.nbytes
        if kernel.startswith("decompress"):
            return 2 * LAUNCH_US + decompress_us(gpu, n, k, tokens, nbytes)
        stored = cuda_packing.describe(packed).nnz
        if layout.packing == "bsr":
            terms = bsr_terms(gpu, n, k, tokens, stored, nbytes)
        elif layout.packing == "csr":
            terms = csr_terms(gpu, self.weights.weight.dtype, n, k, tokens, stored, nbytes)
        else:
            tile = int(kernel.rsplit("_t", 1)[1])
            terms = tiled_terms(gpu, layout.packing, tile, n, k, tokens, nbytes)
        return LAUNCH_US + longest(terms)


def scattered_layouts(weights: Weights) -> tuple[Layout, ...]:
    """Those for zeros anywhere that may win at the sparsity of these weights; at least one."""
    storage = DTYPE_NAMES[weights.weight.dtype]
    fit = [name for name, (low, high) in HALF_BOUNDS.items() if low <= weights.sparsity <= high]
    packings = ["csr"] if storage == "f32" else fit or ["bitmap"]
    return tuple(Layout(packing, storage, device="cuda") for packing in packings)


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


def waited_for(call: Call, device: torch.device) -> Call:
    """The call and the wait for its end."""

    def run() -> None:
        call()
        torch.cuda.synchronize(device)

    return run
