"""Predicts times of CUDA kernels: the bytes and operations of a product over the GPU's peak rates.

Each resource that a kernel uses gives a term: the microseconds it would take if nothing else limited it. The
longest term plus the launch is the predicted time. Caches, latencies and stalls are not modelled: this is the
time of a perfect kernel with these bytes and instructions, and a measured time is longer.
`bench/gpu/gpu_model.py` shows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from sparseinfer.formats.dtypes import DTYPE_NAMES
from sparseinfer.ops import Layout
from sparseinfer.ops.cuda.tiles import piece_count

# Microseconds per call by name of what takes them.
Terms = Mapping[str, float]

# Of a call outside a CUDA graph, as the planner times them: an estimate, not measured.
LAUNCH_US = 5.0

# Per clock and multiprocessor, of 8.0 and 9.0 (CUDA C++ Programming Guide, "Compute Capabilities"): one
# access of up to so many bytes to shared memory or the L1 cache, four instructions issued. Of those at most
# two are additions, comparisons, logic or permutes of integers, for which there are 64 lanes (there,
# "Arithmetic Instructions").
_ACCESS_BYTES = 128
_ISSUED = 4
_ALU = 2


@dataclass(frozen=True)
class Gpu:
    """Peak rates of one GPU model, per microsecond.

    name             part of the GPU's name in torch
    multiprocessors
    clock            cycles
    hbm              bytes read and written by a large copy
    l2               bytes from the L2 cache to all multiprocessors
    dense, dense_f32 floating-point operations of a large cuBLAS product in 16 bits, and in 32
    mma              floating-point operations of mma.sync in 16 bits
    clusters         whether a cluster of thread blocks shares a row of tiles; else one block computes it
    """

    name: str
    multiprocessors: int
    clock: float
    hbm: float
    l2: float
    dense: float
    dense_f32: float
    mma: float
    clusters: bool = False


# Copies and large products: what such cards are commonly measured at, 0.8 to 0.9 of NVIDIA's data sheets. The
# L2 of an H100: Chips and Cheese, "Nvidia's H100: Funny L2, and Tons of Bandwidth" (2023); that of an A100 is
# 0.6 of the data sheet, likewise. mma.sync reaches 0.63 of the peak on Hopper and all of it on Ampere: Luo et
# al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture" (2024).
H100 = Gpu("H100", 132, 1755.0, 3.0e6, 5.5e6, 800e6, 50e6, 620e6, clusters=True)
H200 = Gpu("H200", 132, 1755.0, 4.3e6, 5.5e6, 800e6, 50e6, 620e6, clusters=True)
A100 = Gpu("A100", 108, 1410.0, 1.7e6, 4.2e6, 260e6, 18e6, 260e6)
GPUS = (H100, H200, A100)


def gpu_of(device: torch.device) -> Gpu:
    """The Gpu of a device. Unlisted: an A100 with its number of multiprocessors; no GPU: an H100."""
    if device.type != "cuda":
        return H100
    properties = torch.cuda.get_device_properties(device)
    listed = next((gpu for gpu in GPUS if gpu.name in properties.name), None)
    if listed is not None:
        return listed
    scale = properties.multi_processor_count / A100.multiprocessors
    rates = ("hbm", "l2", "dense", "dense_f32", "mma")
    scaled = {rate: scale * getattr(A100, rate) for rate in rates}
    return replace(A100, name=properties.name, multiprocessors=properties.multi_processor_count, **scaled)


@dataclass(frozen=True)
class Instructions:
    """Instructions of a warp for a tile of 64 x 64 weights; `alu`: those issued at 64 lanes per clock."""

    issued: float
    alu: float


# In which streams come (csrc/cuda/ring.h).
CHUNK_BYTES = 2048


@dataclass(frozen=True)
class _Decoder:
    """(issued, alu) per tile, and besides for each 8 tokens, chunk of the stream and pair of entries."""

    tile: tuple[float, float]
    tokens: tuple[float, float]
    chunk: tuple[float, float]
    pair: tuple[float, float] = (0.0, 0.0)

    def instructions(self, tokens: int, pairs: float, stream_bytes: float) -> Instructions:
        parts = (
            (self.tile, 1.0),
            (self.tokens, tokens / 8),
            (self.pair, pairs),
            (self.chunk, stream_bytes / CHUNK_BYTES),
        )
        issued, alu = (sum(part[i] * times for part, times in parts) for i in range(2))
        return Instructions(issued, alu)


# Counted by bench/gpu/gpu_sass.py in the machine code for 9.0a; that for 8.0 takes up to a fifth more.
_DELTA = _Decoder((166.0, 48.0), (27.5, 3.6), (64.0, 27.5), (17.8, 11.0))
_DECODERS = {
    "bitmap": _Decoder((681.0, 285.0), (30.0, 3.8), (57.5, 14.0)),
    "delta4": _DELTA,
    "delta8": _DELTA,
}

# Up to so many pairs a tile of delta is cleared pair by pair (csrc/cuda/tiles.cuh), which costs this much.
FEW_PAIRS = 8
_CLEARED_PAIR = (14.3, 8.9)

_TILE = 64
_TILE_WEIGHTS = _TILE * _TILE
# Bytes of a tile of delta beside its pairs: each lane's first place, and the number of pairs.
_FIRSTS_BYTES = 65
_PAIR_BYTES = {"delta4": 160, "delta8": 192}
_TILE_ACCESSES = 2 * _TILE_WEIGHTS / _ACCESS_BYTES
# A store of 32 entries takes so many passes over shared memory, because lanes meet in a bank: the average of
# random zeros, 60 to 95 %.
_STORE_PASSES = 1.9
_CTA_WARPS = 4
_CLUSTER = 8


def tile_count(n: int, k: int) -> int:
    return -(-n // _TILE) * -(-k // _TILE)


def pairs_per_tile(packing: str, nbytes: int, tiles: int) -> float:
    """Average pairs of entries per lane and tile, from the bytes of a packing; 0 for bitmap."""
    if packing == "bitmap":
        return 0.0
    return max(nbytes / tiles - _FIRSTS_BYTES, 0.0) / _PAIR_BYTES[packing]


def tiled_terms(
    gpu: Gpu,
    packing: str,
    tile: int,
    n: int,
    k: int,
    m: int,
    nbytes: int,
    instructions: Instructions | None = None,
) -> Terms:
    """Terms of spmm_{packing}_{bf16 or f16}_t{tile} with W [n, k] in a packing of `nbytes`.

    HBM           (W for each pass + x and y) / copy
    L2            (W for each pass + x for each block's rows of tiles) / L2
    issue, ALU    tiles * passes * instructions / (4 or 2 per clock and multiprocessor)
    shared        tiles * passes * accesses of up to 128 bytes / (1 per clock and multiprocessor). Of a tile:
                  its stream is written, x is read from the L1 cache. bitmap: 2 bytes of each lane are loaded
                  for each weight. delta: for each pair values and codes are loaded and two entries stored;
                  the decoded tile is read and cleared
    tensor cores  2 * n * k * tokens / mma.sync

    A pass reads W once, for `tile` tokens; m is rounded up to a multiple. Where the blocks are not a multiple
    of the multiprocessors, some of these compute longer than the average. `instructions`: default as counted.
    """
    passes, tiles, rows = -(-m // tile), tile_count(n, k), -(-n // _TILE)
    pairs, stream = pairs_per_tile(packing, nbytes, tiles), nbytes / tiles
    if instructions is None:
        instructions = _instructions(packing, tile, pairs, stream)
    accesses = stream / _ACCESS_BYTES + 2 * _TILE * tile / _ACCESS_BYTES
    if packing == "bitmap":
        accesses += _TILE_WEIGHTS / 32
    else:
        accesses += pairs * (2 + 2 * _STORE_PASSES) + _TILE_ACCESSES
        accesses += pairs * (1 + 2 * _STORE_PASSES) if pairs <= FEW_PAIRS else _TILE_ACCESSES
    rows_at_once, blocks = _blocks(gpu, n)
    # On the busiest multiprocessor over the average one.
    imbalance = _round_up(passes * blocks, gpu.multiprocessors) / (passes * blocks)
    clocks = passes * tiles / (gpu.multiprocessors * gpu.clock) * imbalance
    return {
        "HBM": (passes * nbytes + 2 * m * (n + k)) / gpu.hbm,
        "L2": (passes * nbytes + 2 * m * k * rows / rows_at_once) / gpu.l2,
        "issue": clocks * instructions.issued / _ISSUED,
        "ALU": clocks * instructions.alu / _ALU,
        "shared": clocks * accesses,
        "tensor cores": 2 * passes * tile * n * k / gpu.mma,
    }


def _instructions(packing: str, tile: int, pairs: float, stream_bytes: float) -> Instructions:
    decoding = _DECODERS[packing].instructions(tile, pairs, stream_bytes)
    if 0 < pairs <= FEW_PAIRS:
        issued, alu = _CLEARED_PAIR
        return Instructions(decoding.issued + pairs * issued, decoding.alu + pairs * alu)
    return decoding


def _blocks(gpu: Gpu, n: int) -> tuple[int, int]:
    """Rows of tiles that the warps of a block share, and blocks of threads (csrc/cuda/sm90/tiles.cu)."""
    rows = -(-n // _TILE)
    if not gpu.clusters:
        return 1, rows
    rows_at_once = _CTA_WARPS * _CLUSTER // piece_count(n)
    return rows_at_once, -(-rows // rows_at_once) * _CLUSTER


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def dense_terms(gpu: Gpu, dtype: torch.dtype, n: int, k: int, m: int) -> Terms:
    """Terms of the dense product: W, x and y moved once; operations at the rate of a large product."""
    rate = gpu.dense_f32 if dtype == torch.float32 else gpu.dense
    return {
        "HBM": dtype.itemsize * (n * k + m * (n + k)) / gpu.hbm,
        "tensor cores": 2 * m * n * k / rate,
    }


# Multiply-adds per clock and multiprocessor: three quarters of the bounds in csrc/cuda/simt/csr_tile.cu.
_CSR = {2: 35, 4: 24}


def csr_terms(gpu: Gpu, dtype: torch.dtype, n: int, k: int, m: int, nnz: int, nbytes: int) -> Terms:
    """Terms of spmm_csr: W, x and y moved once; multiply-adds at the rate of shared memory."""
    size, layout = dtype.itemsize, Layout("csr", DTYPE_NAMES[dtype], device="cuda")
    # Tokens are rounded up to a tile, but for the kernel that is for few.
    at_once = 1 if m <= layout.row(1).max_tokens else layout.row(m).tile_tokens
    tokens = -(-m // at_once) * at_once
    return {
        "HBM": (nbytes + size * m * (n + k)) / gpu.hbm,
        "issue": tokens * nnz / (_CSR[size] * gpu.multiprocessors * gpu.clock),
    }


# The rate of spmm_bsr over that of a large dense product: an estimate, not measured.
_BSR_OF_DENSE = 0.6


def bsr_terms(gpu: Gpu, n: int, k: int, m: int, stored: int, nbytes: int) -> Terms:
    """Terms of spmm_bsr with this number of weights in stored blocks."""
    return {
        "HBM": (nbytes + 2 * m * (n + k)) / gpu.hbm,
        "tensor cores": 2 * m * stored / (_BSR_OF_DENSE * gpu.dense),
    }


def decompress_us(gpu: Gpu, n: int, k: int, m: int, nbytes: int) -> float:
    """Microseconds of decompressing in 16 bits and then the dense product, without launches."""
    written = (nbytes + 2 * n * k) / gpu.hbm
    return written + longest(dense_terms(gpu, torch.bfloat16, n, k, m))


def longest(terms: Terms) -> float:
    return max(terms.values())
