"""Candidates of a product beside the dense product that a server has of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparseinfer._timing import Call, sample
from sparseinfer.convert.candidates.base import Candidate, Candidates, Maker, Timed
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.ops import Layout


@dataclass(frozen=True)
class OwnProduct:
    """What a server computes a dense layer with.

    name       of the server, for remembered times
    make       make(weight [n, k]) -> a function x [m, k] -> [m, n]
    call_us    microseconds that the server takes longer to call a layer of ours than one of its own
    choice_us  what it takes more to choose between both by the number of tokens
    """

    name: str
    make: Callable[[Tensor], Callable[[Tensor], Tensor]]
    call_us: float
    choice_us: float


@dataclass(frozen=True)
class BesideOwn:
    """The same candidates; the server's product is one more of the dense implementations."""

    timed: Timed
    own: OwnProduct

    @property
    def dense_weights(self) -> Weights:
        return self.timed.dense_weights

    @property
    def weights(self) -> Weights:
        return self.timed.weights

    @property
    def variants(self) -> Sequence[Candidates]:
        return self.timed.variants

    @property
    def kind(self) -> str:
        return self.timed.kind

    @property
    def shape(self) -> tuple[object, ...]:
        return self.timed.shape

    @property
    def title(self) -> str:
        return self.timed.title

    @property
    def dense_names(self) -> tuple[str, ...]:
        return (*self.timed.dense_names, self.own.name)

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        weight = self.dense_weights.weight
        x = sample((tokens, weight.shape[1]), weight.dtype)

        def make() -> Call:
            product = self.own.make(weight.clone())
            return lambda: product(x)

        return {**self.timed.dense(tokens), self.own.name: make}

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        return self.timed.sparse(layout, tokens)

    def nbytes(self, candidate: Candidate) -> int:
        return self.dense_weights.weight.nbytes if self._is_own(candidate) else self.timed.nbytes(candidate)

    def predict(self, candidate: Candidate, tokens: int, *, cold: bool = False) -> float:
        """The server's product is predicted to be as fast as the best of torch's."""
        of = self.timed.dense_names if self._is_own(candidate) else (candidate,)
        return min(self.timed.predict(each, tokens, cold=cold) for each in of)

    def _is_own(self, candidate: Candidate) -> bool:
        return isinstance(candidate, str) and candidate == self.own.name
