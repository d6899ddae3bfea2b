"""Scales densities that differ from layer to layer so that they reach an overall sparsity exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from sparseinfer.prune.layers.layer import Layer

# A float64 has 53 bits: halved so often, any interval of ordinary size has two neighbours as its bounds.
_BISECTIONS = 100


def spread(
    layers: Mapping[str, Layer],
    sparsity: float,
    densities: Callable[[float], list[float]],
    *,
    none: float,
    every: float,
) -> dict[str, float]:
    """The sparsities of `densities(x)`, clipped to [0, 1], at the x that gives the overall sparsity.

    densities  do not decrease with x; at x = `none` all are at most 0, at x = `every` all are at least 1

    Each layer keeps at least one weight, if the total allows it.
    """
    sizes = [layer.weight.numel() for layer in layers.values()]
    kept = sum(sizes) - round(sparsity * sum(sizes))
    least = 1 if kept >= len(sizes) else 0

    def counts(x: float) -> list[float]:
        wanted = (density * size for density, size in zip(densities(x), sizes, strict=True))
        return [min(max(count, least), size) for count, size in zip(wanted, sizes, strict=True)]

    for _ in range(_BISECTIONS):
        middle = (none + every) / 2
        if sum(counts(middle)) < kept:
            none = middle
        else:
            every = middle
    whole = _rounded(counts(every), sizes, kept)
    return {
        fqn: 1 - count / size if size else 0.0 for fqn, count, size in zip(layers, whole, sizes, strict=True)
    }


def _rounded(counts: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Integers of that total next to the counts: those with the largest remainders are rounded up."""
    whole = [int(count) for count in counts]
    room = (i for i in sorted(range(len(counts)), key=lambda i: whole[i] - counts[i]) if whole[i] < sizes[i])
    for i in itertools.islice(room, total - sum(whole)):
        whole[i] += 1
    return whole
