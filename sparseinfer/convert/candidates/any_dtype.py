"""Candidates of one product in several dtypes, which are timed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        return self._having(layout).sparse(layout, tokens)

    def nbytes(self, candidate: Candidate) -> int:
        return self._having(candidate).nbytes(candidate)

    def predict(self, candidate: Candidate, tokens: int, *, cold: bool = False) -> float:
        return self._having(candidate).predict(candidate, tokens, cold=cold)

    def _having(self, candidate: Candidate) -> Candidates:
        """The first variant of whose candidates it is one."""
        if isinstance(candidate, str):
            return next(variant for variant in self.variants if candidate in variant.dense_names)
        return next(variant for variant in self.variants if variant.holds(candidate))
