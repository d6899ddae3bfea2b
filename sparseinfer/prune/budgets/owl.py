"""Budgets: one sparsity, spread over the layers by what each of them can bear.

A float is the uniform budget: every layer gets that fraction. The budgets here give each layer its own. All
layers together then hold exactly `round(sparsity * numel)` zeros where single weights are pruned by layer;
with a scope of rows, or units of several weights, each layer's count is rounded to what those allow.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from sparseinfer.prune import importance
from sparseinfer.prune.checks import check_fraction
from sparseinfer.prune.layers import Layer
from sparseinfer.prune.sparsity import Budget
from sparseinfer.prune.statistics import CalibrationStats

if TYPE_CHECKING:
    from sparseinfer.prune.methods import SparseMethod

Per = Literal["block", "layer"]

# Halvings after which two float64 bounds are neighbours.
_BISECTIONS = 100


@dataclass(frozen=True)
class ERK(Budget):
    """Erdős–Rényi kernel: density in proportion to the sum of a weight's sizes over their product.

    sparsity  of all layers together, in [0, 1)

    Small and narrow layers stay denser than large and square ones. A layer whose density would exceed 1 is
    left dense, and the others share what is left. Mocanu et al., "Scalable training of artificial neural
    networks with adaptive sparse connectivity", 2018; the kernel's sizes: Evci et al., "Rigging the lottery",
    2020. TypeError or ValueError if the sparsity is not as described.
    """

    sparsity: float

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)

    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: SparseMethod
    ) -> dict[str, float]:
        raw = [sum(layer.sizes) / max(math.prod(layer.sizes), 1) for layer in layers.values()]
        return _spread(
            layers,
            self.sparsity,
            lambda scale: [scale * each for each in raw],
            none=0.0,
            every=1 / min(raw, default=1.0),
        )


@dataclass(frozen=True)
class OWL(Budget):
    """Outlier weighed layerwise sparsity: what holds more outliers is pruned less. Yin et al., 2023.

    sparsity  of all layers together, in [0, 1)
    m         an outlier is a Wanda score of more than m times the mean
    lam       densities lie in a range of 2·lam about the asked one, before what exceeds 1 is shared out
    per       "block": layers of one transformer block, `model.layers.3.…`, are looked at together and get one
              density; "layer": each by itself. A layer outside of any block is by itself

    It needs a calibration's norms, and is meant for Wanda and SparseGPT. TypeError or ValueError if an
    argument is not as described.
    """

    sparsity: float
    m: float = 5.0
    lam: float = 0.08
    per: Per = "block"

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        for name in ("m", "lam"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        if self.per not in get_args(Per):
            raise ValueError(f"per: expected one of {get_args(Per)}, got {self.per!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"norms"})

    def allocate(
        self, layers: Mapping[str, Layer], stats: CalibrationStats | None, method: SparseMethod
    ) -> dict[str, float]:
        assert stats is not None
        groups = _blocks(layers) if self.per == "block" else [[fqn] for fqn in layers]
        share = {}
        for group in groups:
            share.update(dict.fromkeys(group, self._outliers([layers[fqn] for fqn in group], stats)))
        low, high = min(share.values(), default=0.0), max(share.values(), default=0.0)
        # All alike, as those of a single block: uniform.
        scale = 2 * self.lam / (high - low) if high > low else 0.0
        offsets = [scale * (share[fqn] - low) for fqn in layers]
        return _spread(
            layers,
            self.sparsity,
            lambda shift: [shift + offset for offset in offsets],
            none=-2 * self.lam,
            every=1.0,
        )

    def _outliers(self, layers: Sequence[Layer], stats: CalibrationStats) -> float:
        """The fraction of the layers' weights whose score exceeds m times the mean of them all."""
        scores = torch.cat(
            [importance.wanda(layer.matrix(), stats[layer.fqn].sq).flatten() for layer in layers]
        )
        return float((scores > self.m * scores.mean(dtype=torch.float64)).double().mean())


def _blocks(layers: Mapping[str, Layer]) -> list[list[str]]:
    """Names of one transformer block together: those alike up to the first number in them."""
    blocks: dict[str, list[str]] = {}
    for fqn in layers:
        found = re.match(r"(?:.*?\.)?\d+(?=\.)", fqn)
        blocks.setdefault(found[0] if found else fqn, []).append(fqn)
    return list(blocks.values())


def _spread(
    layers: Mapping[str, Layer],
    sparsity: float,
    densities: Callable[[float], list[float]],
    *,
    none: float,
    every: float,
) -> dict[str, float]:
    """The sparsities of `densities(x)`, cut to [0, 1], at the x where all layers together are as asked.

    densities  never fall with x; `none` is an x where none is above 0, `every` one where none is below 1

    A layer keeps at least one weight, if that many are kept.
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
