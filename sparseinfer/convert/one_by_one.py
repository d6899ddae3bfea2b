"""Makes single Linears sparse, for servers that load a model layer by layer, in modules of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import nn

from sparseinfer._machine import last_level_cache_bytes
from sparseinfer.convert.assembly.multiply import multipliers
from sparseinfer.convert.candidates.base import Timed
from sparseinfer.convert.candidates.beside_own import BesideOwn, OwnProduct
from sparseinfer.convert.candidates.choose import candidates_of
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.options import COMPACT, ConvertOptions
from sparseinfer.convert.plan import Plan, plan
from sparseinfer.convert.survey.survey import products_of, survey_of
from sparseinfer.convert.timing.timer import Timer
from sparseinfer.convert.timing.times import Times
from sparseinfer.convert.ways import EQUAL
from sparseinfer.modules import SparseLinear
from sparseinfer.ops import Layout

# The server's product in a layer of ours, for those numbers of tokens that it serves there.
_OWN_INSIDE = "own"


class SparseOrOwn(NamedTuple):
    """A layer in its packings; in the buckets of its plan with these numbers the server's own is faster."""

    layer: SparseLinear
    own_at: tuple[int, ...]


class OneByOne:
    """Decides as `convert` does without example inputs; all layers of a model share its time budget.

    nbytes   of the model's dense weights: a model that exceeds the cache reads them from memory
    own      the server's dense product, which counts as one of the dense implementations
    """

    def __init__(self, options: ConvertOptions, nbytes: int, own: OwnProduct) -> None:
        self._options, self._own = options, own
        cold = nbytes > last_level_cache_bytes()
        self._timer = Timer(measure=options.measure, budget_s=options.budget_s, cold=cold)

    def sparse(self, linear: nn.Linear) -> SparseOrOwn | None:
        """None: it is faster dense, or no kernel takes it.

        `own_at` is empty unless `memory` lets a layer hold its dense weight beside packings.
        """
        survey = survey_of(linear, {"": linear}, None, named=True)
        products = products_of(linear, survey, fuse=False, fold=False)
        if not products:
            return None
        (product,) = products
        candidates, tokens = candidates_of(product, survey.recording, self._options)
        if isinstance(candidates, str):
            return None
        if all(each.weights.sparsity < each.min_sparsity for each in candidates.variants):
            return None  # without timing the dense ways
        timed = BesideOwn(candidates, self._own)
        alone = self._plan(timed, tokens, 0.0)
        beside = self._plan(timed, tokens, self._own.choice_us, _OWN_INSIDE)
        planned = min((each for each in (alone, beside) if each.is_sparse), key=_slowness, default=alone)
        loses = _slowness(planned)[0] > EQUAL
        if not planned.is_sparse or (loses and self._options.memory_limit != COMPACT):
            return None
        (made,) = multipliers(Decision(product, replace(planned, dense_at=())))
        assert isinstance(made, SparseLinear)
        return SparseOrOwn(made, planned.dense_at)

    def _plan(self, timed: Timed, tokens: Sequence[int], choice_us: float, *beside: str) -> Plan:
        measure = partial(self._in_server, choice_us)
        return plan(timed, tokens, measure, self._options.memory_limit, beside)

    def _in_server(
        self, choice_us: float, candidates: Timed, layouts: Iterable[Layout], tokens: int
    ) -> Times:
        """Times of calls in the server, of layers that choose between packings and its own product."""
        times, call_us = self._timer(candidates, layouts, tokens), self._own.call_us + choice_us
        dense = {**times.dense, _OWN_INSIDE: times.dense[self._own.name] + choice_us}
        return replace(times, dense=dense, sparse={each: us + call_us for each, us in times.sparse.items()})


def _slowness(planned: Plan) -> tuple[float, float]:
    """At worst, and in all: times over those of the best dense implementations."""
    ratios = [times.ratio(each) for times, each in zip(planned.times, planned.chosen, strict=True)]
    return max(EQUAL, *ratios), sum(ratios)
