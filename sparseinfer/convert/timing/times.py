"""The times of a product's candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from sparseinfer.convert.candidates.base import Candidate
from sparseinfer.ops import Layout

Source = Literal["measured", "remembered", "predicted"]
# From the surest to the least sure.
SOURCES = get_args(Source)


@dataclass(frozen=True)
class Times:
    """Microseconds per call with `tokens` tokens, by dense implementation and by layout."""

    tokens: int
    dense: Mapping[str, float]
    sparse: Mapping[Layout, float]
    source: Source = "measured"

    @property
    def by_name(self) -> dict[str, float]:
        """Of both kinds."""
        return {**self.dense, **{str(layout): us for layout, us in self.sparse.items()}}

    @property
    def dense_us(self) -> float:
        """Microseconds of the best dense implementation."""
        return min(self.dense.values())

    def us(self, candidate: Candidate) -> float:
        """Microseconds of a layout, or of a dense implementation by its name."""
        return self.dense[candidate] if isinstance(candidate, str) else self.sparse[candidate]

    def ratio(self, candidate: Candidate) -> float:
        """Its time over the best dense one; infinity if neither is known, so that the layer stays dense."""
        return self.us(candidate) / self.dense_us if math.isfinite(self.dense_us) else math.inf
