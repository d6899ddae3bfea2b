"""How fast a sparse product can be at best on this machine, by its measured rates."""

from __future__ import annotations

import math

from sparseinfer._rates import Rates
from sparseinfer.bench.layer import Cell
from sparseinfer.formats.dtypes import WEIGHT_DTYPES

# Which units may multiply weights of a dtype: the fastest that a level has counts. Without any of these,
# integers are multiplied by instructions that nobody measures.
_UNITS = {"bf16": ("fma", "dot", "tile_bf16"), "i8": ("vnni", "tile_int8")}


def bound_us(cell: Cell, rates: Rates) -> float:
    """Microseconds that no kernel can beat: of multiplying, or of reading once, whichever takes longer.

    Multiplying: m · nnz multiply-adds by the fastest unit for the dtype, on all threads. Reading: the values,
    and the least that says where they are, n · k · H(sparsity) bits for zeros at random places, with H the
    binary entropy; x and y, once each; at the rate of reading so many bytes again and again.
    """
    m, n, k = cell.tokens, cell.n, cell.k
    nnz = round((1 - cell.sparsity) * n * k)
    multiplying = m * nnz / peak(cell.dtype, cell.threads, rates)
    size = WEIGHT_DTYPES[cell.dtype].itemsize
    x_size = 4 if cell.dtype == "i8" else size
    weights = nnz * size + n * k * _entropy(cell.sparsity) / 8
    nbytes = weights + m * (n + k) * x_size
    cold = cell.weights == "cold"
    rate = rates.reads[-1][1] if cold else rates.read_rate(nbytes / cell.threads)
    return max(multiplying, nbytes / (rate * cell.threads)) / 1e3


def peak(dtype: str, threads: int, rates: Rates) -> float:
    """1e9 multiply-adds a second of the fastest unit for a dtype, on so many cores; infinite if unknown."""
    known = [rates.units[unit] for unit in _UNITS.get(dtype, ("fma",)) if unit in rates.units]
    return threads * max(known) if known else math.inf


def _entropy(p: float) -> float:
    """Bits of a place that is zero with probability p."""
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
