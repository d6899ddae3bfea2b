"""Which CUDA kernel reads a packing for how many tokens."""

from __future__ import annotations

from sparseinfer.ops.cuda_tiles import TILED
from sparseinfer.ops.plan import Bucket

# Up to here `csr` reads x from shared memory weight by weight; see csrc/cuda/simt/csr_few.cu.
CUDA_FEW_TOKENS = 4

# Tokens that the kernels of tiled packings multiply at once where they are few; more go 64 at a time.
_TILE_TOKENS = (8, 16, 32)

# From here on a weight of 16 bits is written out densely and multiplied by cuBLAS: dense tensor cores then
# do more than skipping zeros can save on the other cores. A bound on paper, bytes against operations of an
# H100, not a measurement.
DECOMPRESS_TOKENS = 256

# Upper ends of token buckets between which these rules do not change.
CUDA_LIMITS = (CUDA_FEW_TOKENS, *_TILE_TOKENS, DECOMPRESS_TOKENS - 1, None)


def kernel(packing: str, storage: str, block: int, tokens: int) -> str:
    """Base name of the kernel; `block` of a packing "bsr"."""
    if packing == "bsr":
        return f"spmm_bsr_{storage}_b{block}"
    if packing in TILED:
        if tokens >= DECOMPRESS_TOKENS:
            return f"decompress_{packing}_{storage}_p64"
        tile = next((most for most in _TILE_TOKENS if tokens <= most), 64)
        return f"spmm_{packing}_{storage}_t{tile}"
    if tokens <= CUDA_FEW_TOKENS:
        return f"spmm_csr_{storage}_t4"
    if storage == "f32":
        return "spmm_csr_f32_t32"
    return f"spmm_csr_{storage}_t64" if tokens < DECOMPRESS_TOKENS else f"decompress_csr_{storage}_p480"


def buckets(packing: str, storage: str, block: int, number: int) -> tuple[Bucket, ...]:
    """A plan for any number of tokens out of packing number `number` alone."""
    found: list[Bucket] = []
    for limit in CUDA_LIMITS:
        name = kernel(packing, storage, block, DECOMPRESS_TOKENS if limit is None else limit)
        if found and found[-1].kernel == name:
            found.pop()
        found.append(Bucket(limit, number, name))
    return tuple(found)
