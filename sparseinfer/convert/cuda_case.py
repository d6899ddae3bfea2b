"""A Linear on a GPU as the planner sees it. Everything but the calls themselves works on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.convert.cases import Call, LinearCase, Maker
from sparseinfer.formats._checks import DTYPE_NAMES
from sparseinfer.ops import Layout, cuda_packing
from sparseinfer.ops.cuda_layouts import CUDA_FEW_TOKENS, CUDA_LIMITS, DECOMPRESS_TOKENS
from sparseinfer.ops.dense import PLAIN, SEMI_STRUCTURED, semi_structured_available

# Blocks are tried where they hold at most so many times the weights that are not zero.
_BLOCK_FILLING = 1.25

# Of an H100, on paper: bytes and operations per microsecond, and microseconds to launch. Multiply-adds of csr
# are those that shared memory feeds, 32 or 64 per clock and multiprocessor; see csrc/cuda/simt/csr_tile.cu.
_BYTES = 3.0e6
_DENSE = {"f32": 25e6, "bf16": 350e6, "f16": 350e6}
_CSR = {"f32": 5.5e6, "bf16": 8e6, "f16": 8e6}
_CSR_TOKENS = {"f32": 32, "bf16": 64, "f16": 64}
_BSR_OF_DENSE = 0.6
_SEMI_STRUCTURED_GAIN = 1.6
_LAUNCH_US = 5.0


@dataclass(eq=False)
class CudaLinearCase(LinearCase):
    """y = x · Wᵀ + bias on the GPU that the weights are on.

    Candidates are `csr`, which from 256 tokens on is written out densely and multiplied by cuBLAS, `bsr`
    where zeros lie in blocks, and the dense layer, in torch's 2:4 form too where the zeros allow it. Times
    hold a launch and the wait for its end.
    """

    @property
    def limits(self) -> tuple[int | None, ...]:
        return CUDA_LIMITS

    @property
    def kind(self) -> str:
        device = self.weights.weight.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{super().kind} on {name}"

    def compact_layout(self) -> Layout:
        return Layout("csr", self._storage, device="cuda")

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        return (self.compact_layout(), *self._blocks)

    @property
    def _storage(self) -> str:
        return DTYPE_NAMES[self.weights.weight.dtype]

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
                return (Layout("bsr", self._storage, block, "cuda"),)
        return ()

    def _pack(self, layout: Layout) -> tuple[Tensor, ...]:
        weight, blocks = self.weights.weight, layout.packing == "bsr"
        return (_packed_blocks(weight, layout.panel) if blocks else cuda_packing.pack_dense(weight),)

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
                return _waited_for(lambda: F.linear(x, copy, bias), weight.device)

            return make

        ways: dict[str, Callable[[Tensor], Tensor]] = {PLAIN: torch.clone}
        ways[SEMI_STRUCTURED] = torch.sparse.to_sparse_semi_structured
        return {name: maker(ways[name]) for name in self.dense_names}

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        make = super().sparse(layout, tokens)
        return lambda: _waited_for(make(), self.weights.weight.device)

    def predict(self, name: str, tokens: int) -> float:
        """Microseconds on paper: the larger of bytes and operations, and a launch."""
        (n, k), nnz = self.weights.weight.shape, int(self.weights.weight.count_nonzero())
        storage, dense_storage = self._storage, DTYPE_NAMES[self.dense_weights.weight.dtype]
        moved = tokens * (n + k) * self.dense_weights.weight.itemsize
        dense_bytes = self.dense_weights.weight.nbytes
        dense = max((dense_bytes + moved) / _BYTES, tokens * n * k / _DENSE[dense_storage])
        if name in (PLAIN, SEMI_STRUCTURED):
            return _LAUNCH_US + dense / (1 if name == PLAIN else _SEMI_STRUCTURED_GAIN)
        (layout,) = (layout for layout in self.layouts(tokens) if str(layout) == name)
        (packed,) = self.packed(layout)
        sparse_bytes = packed.nbytes + moved
        if layout.packing == "bsr":
            rate = _BSR_OF_DENSE * _DENSE[storage]
            return _LAUNCH_US + max(sparse_bytes / _BYTES, cuda_packing.describe(packed).nnz * tokens / rate)
        if storage != "f32" and tokens >= DECOMPRESS_TOKENS:
            return 2 * _LAUNCH_US + (sparse_bytes + dense_bytes) / _BYTES + dense
        at_once = 1 if tokens <= CUDA_FEW_TOKENS else _CSR_TOKENS[storage]
        padded = -(-tokens // at_once) * at_once
        return _LAUNCH_US + max(sparse_bytes / _BYTES, nnz * padded / _CSR[storage])


def _blocked(weight: Tensor, block: int) -> Tensor:
    """[n / block, k / block, block, block], a view."""
    n, k = weight.shape
    return weight.view(n // block, block, k // block, block).transpose(1, 2)


def _kept_blocks(weight: Tensor, block: int) -> Tensor:
    """Bool [n / block, k / block]: which blocks hold anything."""
    return (_blocked(weight, block) != 0).flatten(2).any(2)


def _packed_blocks(weight: Tensor, block: int) -> Tensor:
    kept = _kept_blocks(weight, block)
    crow = torch.zeros(kept.shape[0] + 1, dtype=torch.int64, device=weight.device)
    torch.cumsum(kept.sum(1), 0, out=crow[1:])
    shape = (weight.shape[0], weight.shape[1])
    return cuda_packing.pack_bsr(_blocked(weight, block)[kept], crow, kept.nonzero()[:, 1], shape)


def _waited_for(call: Call, device: torch.device) -> Call:
    def run() -> None:
        call()
        torch.cuda.synchronize(device)

    return run
