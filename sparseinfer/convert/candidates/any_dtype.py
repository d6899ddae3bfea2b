"""Candidates of one product in several dtypes, which are timed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparseinfer.convert.candidates.base import Candidate, Candidates, Maker
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.ops import Layout


@dataclass(frozen=True)
class AnyDtype:
    """Candidates whose weights are in different dtypes; a plan takes all its layouts from one of them.

    variants   the first rounds nothing
    """

    variants: Sequence[Candidates]

    @property
    def dense_weights(self) -> Weights:
        return self.variants[0].dense_weights

    @property
    def weights(self) -> Weights:
        return self.variants[0].weights

    @property
    def kind(self) -> str:
        return " or ".join(variant.kind for variant in self.variants)

    @property
    def shape(self) -> tuple[object, ...]:
        return self.variants[0].shape

    @property
    def title(self) -> str:
        return self.variants[0].title

    @property
    def dense_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for variant in self.variants for name in variant.dense_names))

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        ways: dict[str, Maker] = {}
        for variant in reversed(self.variants):
            ways |= variant.dense(tokens)
        return {name: ways[name] for name in self.dense_names}

    def packed(self, layout: Layout) -> tuple[Tensor, ...]:
        return self._holding(layout).packed(layout)

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        return self._holding(layout).sparse(layout, tokens)

    def predict(self, candidate: Candidate, tokens: int, *, cold: bool = False) -> float:
        """A dense way is predicted by the first variant that has it."""
        if isinstance(candidate, str):
            having = next(variant for variant in self.variants if candidate in variant.dense_names)
            return having.predict(candidate, tokens, cold=cold)
        return self._holding(candidate).predict(candidate, tokens, cold=cold)

    def _holding(self, layout: Layout) -> Candidates:
        return next(variant for variant in self.variants if variant.holds(layout))
