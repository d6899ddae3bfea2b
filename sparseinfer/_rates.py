"""How fast one core of this machine is: measured once in a second, then remembered on disk."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sparseinfer import _cache_files
from sparseinfer._machine import cache_bytes, cpu_model, private_bytes
from sparseinfer._native import core
from sparseinfer.ops import kernels_at

PROBE_S = 1.0
# Less than a page cannot be probed (csrc/include/sparseinfer/probe_loop.h); more than several times most
# last-level caches is not. Chosen, not measured.
_LEAST_BYTES, _MOST_BYTES = 4096, 256 << 20


@dataclass(frozen=True)
class Rates:
    """Rates of one core at one instruction-set level.

    clock          GHz
    units          1e9 multiply-adds a second, by the keys of `ops.UNITS`; those that the level has
    reads          (bytes, GB/s) of reading so many bytes again and again, ascending; the last from memory
    private_bytes  of the largest cache that no other core uses
    """

    clock: float
    units: Mapping[str, float]
    reads: tuple[tuple[int, float], ...]
    private_bytes: int

    @property
    def measured(self) -> tuple[tuple[int, float], ...]:
        """Those of `reads` that were measured, without those that follow from them."""
        return tuple(pair for pair in self.reads if pair[0] in _sizes())

    def read_rate(self, nbytes: float) -> float:
        """GB/s of reading so many bytes again and again: between two measured sizes by their logarithms."""
        sizes = [size for size, _ in self.reads]
        i = bisect_right(sizes, nbytes)
        if i in (0, len(sizes)):
            return self.reads[max(i - 1, 0)][1]
        (low, before), (high, after) = self.reads[i - 1 : i + 1]
        return float(before * (after / before) ** (math.log(nbytes / low) / math.log(high / low)))


@cache
def rates(isa: str) -> Rates:
    """Those of a level that this machine supports: of this process, of an earlier one, or measured now."""
    sizes = _sizes()
    owner = {
        "cpu": cpu_model(),
        "isa": isa,
        "sparseinfer": core.__version__,
        "sizes": sizes,
        # A later build may have kernels on units that an earlier one did not measure.
        "units": sorted({kernel.unit for kernel in kernels_at(isa)}),
    }
    path = _cache_files.path_for("rates", owner)
    content = _cache_files.read(path)
    try:
        return _checked(content["units"], content["reads"], sizes)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        pass
    units, reads = core.probe(isa, sizes, PROBE_S)
    _cache_files.write(path, {"machine": owner, "units": units, "reads": reads})
    return _checked(units, reads, sizes)


def _sizes() -> list[int]:
    """Bytes to read: half of each private cache, then twice as many each time, until far beyond the last.

    A last cache is shared with other cores, so that nobody knows how much of it is ours.
    """
    caches = list(cache_bytes().values())
    sizes = {max(size // 2, _LEAST_BYTES) for size in caches[:-1] or caches}
    size = 4 * max(sizes)
    while size <= min(2 * caches[-1], _MOST_BYTES):
        sizes.add(size)
        size *= 2
    return sorted(sizes)


def _checked(units: Any, reads: Any, sizes: Sequence[int]) -> Rates:
    """KeyError, TypeError, ValueError, AttributeError, OverflowError: these are no rates."""
    numbers = {str(name): float(rate) for name, rate in units.items()}
    speeds = [float(rate) for rate in reads]
    if not all(0 < rate < math.inf for rate in (*numbers.values(), *speeds)):
        raise ValueError("rates: expected positive numbers")
    measured = list(zip(sizes, speeds, strict=True))
    return Rates(
        clock=numbers.pop("clock"),
        units={"fma": numbers.pop("fma"), **numbers},
        reads=tuple(sorted([*measured, *_plateaus(dict(measured))])),
        private_bytes=private_bytes(),
    )


def _plateaus(speeds: Mapping[int, float]) -> list[tuple[int, float]]:
    """What was read from half of a private cache holds for almost all of it, and beyond the one before it."""
    points: list[tuple[int, float]] = []
    before = 0
    for size in list(cache_bytes().values())[:-1]:
        speed = speeds.get(size // 2)
        if speed is not None:
            points.append((size * 7 // 8, speed))
            if 0 < 2 * before < size // 2:
                points.append((2 * before, speed))
        before = size
    return points
