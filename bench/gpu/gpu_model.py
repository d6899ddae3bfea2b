"""Times of the tiled kernels on paper, by sparseinfer/convert/candidates/cuda_model.py, beside measured ones.

    python bench/gpu/gpu_model.py --json bench/results/gpu_model.json          needs no GPU
    python bench/gpu/gpu_model.py --gpu A100
    python bench/gpu/gpu_model.py --measured bench/results/gpu_h100.json       a report of gpu_report.py

Bytes come from the real packers: some rows of tiles of random zeros, with as many tiles in a piece as the
shape has, and scaled. Instructions come from the machine code, by bench/results/gpu_sass.json; where a kernel
is not in it, from the constants of cuda_model.py, which says what the terms are.

Times are those of calls in a CUDA graph. Dense is the larger of its bytes and its tensor-core time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sass_counts import Counts, instructions

from sparseinfer.convert.candidates.cuda_model import (
    GPUS,
    H100,
    Gpu,
    dense_terms,
    longest,
    pairs_per_tile,
    tile_count,
    tiled_terms,
)
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.kernels import CudaKernel, kernels
from sparseinfer.ops.cuda.tiles import TILED, piece_count

SASS = Path(__file__).parents[1] / "results/gpu_sass.json"
SHAPES = ((4096, 4096), (11008, 4096), (28672, 8192))
TOKENS = (1, 8, 16, 64)
SPARSITIES = (0.5, 0.7, 0.8, 0.9)

# Between the starts of two kernels in a CUDA graph, and until the first bytes have come: an estimate.
GRAPH_US = 2.0


@dataclass(frozen=True)
class Sample:
    """A tile of random zeros on the average: bytes, all sections counted, and a lane's pairs of entries."""

    nbytes: float
    pairs: float


@cache
def sample(packing: str, sparsity: float, piece_tiles: int = 8) -> Sample:
    """By the packer, from 2 rows of tiles of 16 pieces of `piece_tiles` tiles each."""
    n, k = 2 * 64, 16 * 64 * piece_tiles
    kept = torch.rand(n, k, generator=torch.Generator().manual_seed(0)) >= sparsity
    nbytes, tiles = cuda_packing.pack_dense(kept.bfloat16(), packing).nbytes, tile_count(n, k)
    return Sample(nbytes / tiles, pairs_per_tile(packing, nbytes, tiles))


Counted = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Prediction:
    """One product. us: with what a graph adds; `bound`: the term that takes longest; dense_us likewise."""

    n: int
    k: int
    m: int
    sparsity: float
    kernel: str
    nbytes: int
    terms: Mapping[str, float]
    us: float
    dense_us: float

    @property
    def bound(self) -> str:
        return max(self.terms, key=lambda name: self.terms[name])

    @property
    def speed_up(self) -> float:
        return self.dense_us / self.us


def predict(n: int, k: int, m: int, sparsity: float, counted: Counted, gpu: Gpu = H100) -> Prediction:
    """Of the best packing. `counted`: the rows of gpu_sass.py by kernel."""
    by_packing = [_predict(packing, n, k, m, sparsity, counted, gpu) for packing in TILED]
    return min(by_packing, key=lambda prediction: prediction.us)


def predict_dense(n: int, k: int, m: int, gpu: Gpu = H100) -> float:
    """Microseconds, with what a graph adds."""
    return GRAPH_US + longest(dense_terms(gpu, torch.bfloat16, n, k, m))


def _predict(packing: str, n: int, k: int, m: int, sparsity: float, counted: Counted, gpu: Gpu) -> Prediction:
    tile = sample(packing, sparsity, max(1, round(k / 64 / piece_count(n))))
    row = kernel_for(packing, m, "sm90" if gpu.clusters else "sm80")
    kernel = row.name
    per_tile = None
    if kernel in counted:
        per_tile = instructions(Counts.loaded(counted[kernel]["counts"]).at(tile.pairs, tile.nbytes))
    nbytes = round(tile.nbytes * tile_count(n, k))
    terms = tiled_terms(gpu, packing, row.tile_tokens, n, k, m, nbytes, per_tile)
    us = GRAPH_US + longest(terms)
    return Prediction(n, k, m, sparsity, kernel, nbytes, terms, us, predict_dense(n, k, m, gpu))


def kernel_for(packing: str, tokens: int, arch: str) -> CudaKernel:
    """The row of bfloat16 that plans name for so many tokens, whether this build has CUDA kernels or not."""
    wanted = ("spmm", packing, "bf16", arch)
    rows = (row for row in kernels() if (row.op, row.packing, row.dtype, row.arch) == wanted)
    return next(row for row in rows if row.serves(tokens))


def predictions(gpu: Gpu, counted: Counted) -> Iterator[Prediction]:
    for n, k in SHAPES:
        for sparsity in SPARSITIES:
            for m in TOKENS:
                yield predict(n, k, m, sparsity, counted, gpu)


def counted_instructions(path: Path = SASS) -> dict[str, Mapping[str, Any]]:
    """The rows of gpu_sass.py by kernel; none where it has not been run."""
    return {row["kernel"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


Product = tuple[int, int, int, float, str]


def measured(path: Path) -> dict[Product, tuple[float, float]]:
    """(n, k, m, sparsity, kernel) -> microseconds, and those of the best dense, of a report."""
    times = {}
    for row in json.loads(path.read_text())["times"]:
        if row.get("kind") == "sparse" and "us" in row:
            product = row["n"], row["k"], row["m"], row["sparsity"], row["candidate"]
            times[product] = row["us"], row["us"] * row["x_dense"]
    return times


def summary(predicted: Sequence[Prediction]) -> Table:
    """One line per matrix, for docs/gpu.md."""
    shown = Table(box=MARKDOWN)
    for name in ("W", "zeros", *(f"m = {m}" for m in TOKENS)):
        shown.add_column(name, justify="right", no_wrap=True)
    for first in range(0, len(predicted), len(TOKENS)):
        line = predicted[first : first + len(TOKENS)]
        cells = (f"{p.us:.1f} us, {p.speed_up:.2f}, {p.bound}" for p in line)
        shown.add_row(f"{line[0].n} × {line[0].k}", f"{line[0].sparsity:.0%}", *cells)
    return shown


def table(predicted: Sequence[Prediction], times: Mapping[Product, tuple[float, float]]) -> Table:
    """One line per product, beside measured ones."""
    shown = Table(box=SIMPLE_HEAD)
    names = ["W", "zeros", "m", "kernel", "us", "dense us", "x dense", "bound by", "next"]
    for name in names + ["measured us", "/ paper", "x dense"] * bool(times):
        text = name in ("W", "kernel", "bound by", "next")
        shown.add_column(name, justify="left" if text else "right", no_wrap=True)
    for p in predicted:
        after = sorted(p.terms, key=lambda name: -p.terms[name])[1]
        cells = [f"{p.n}x{p.k}", f"{p.sparsity:.0%}", str(p.m), p.kernel, f"{p.us:.1f}", f"{p.dense_us:.1f}"]
        cells += [f"{p.speed_up:.2f}", p.bound, f"{after} {p.terms[after] / p.terms[p.bound]:.2f}"]
        if (product := (p.n, p.k, p.m, p.sparsity, p.kernel)) in times:
            us, dense_us = times[product]
            cells += [f"{us:.1f}", f"{us / p.us:.2f}", f"{dense_us / us:.2f}"]
        shown.add_row(*cells, end_section=p.m == TOKENS[-1])
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", choices=[gpu.name for gpu in GPUS], default="H100")
    parser.add_argument("--measured", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    gpu = next(gpu for gpu in GPUS if gpu.name == arguments.gpu)
    predicted = list(predictions(gpu, counted_instructions()))
    shown = table(predicted, measured(arguments.measured)) if arguments.measured else summary(predicted)
    Console(width=160).print(shown)
    if arguments.json:
        rows = [asdict(p) | {"speed_up": p.speed_up} for p in predicted]
        arguments.json.write_text(json.dumps({"gpu": asdict(gpu), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
