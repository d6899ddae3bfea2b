"""Times a product on this machine with every dense implementation and sparse layout."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from sparseinfer._machine import last_level_cache_bytes
from sparseinfer._timing import Call
from sparseinfer.convert.candidates.base import Maker, Timed
from sparseinfer.convert.timing.ranking import Ranking, rank
from sparseinfer.convert.timing.times import Source, Times
from sparseinfer.convert.timing.verdicts import Verdicts
from sparseinfer.ops import Layout

# Seconds to measure one candidate for, longer where the order is not sure. Chosen, not measured: a model of
# 50 products at 4 token counts with 6 candidates each then takes 36 s, within the default budget.
_CANDIDATE_S = 0.03

# A time over that of the best dense way is absurd if it is so many times larger or smaller than predicted.
# The cost model of one machine is right for another within less, but for CPUs with matrix units. Chosen, not
# measured.
_ABSURD = 4.0
# Two measurements agree if no such quotient differs by more. Chosen, not measured.
_AGREES = 1.25

# After so many measurements of alike products of which none was sure, the rest of a conversion takes their
# medians: a busy machine would not get surer. Chosen, not measured.
_UNSURE = 3

# Copies of a cold weight fill the last-level cache so many times, so that each has left it before its turn
# comes again; but no more memory and no more copies than these, and so many seconds for one call of each.
# Chosen, not measured.
_COLD_CACHES = 1.5
_MAX_COLD_BYTES = 256 << 20
_MAX_COPIES = 256
_WARM_UP_S = 0.05


class Timer:
    """Uses the cached times of earlier conversions, else measures, else predicts by the cost model.

    measure    False: neither measure nor use cached times
    budget_s   seconds for all measurements together; afterwards times are predicted
    cold       read weights from memory: each call uses another copy, together larger than the cache
    on_start   called with the name of each measurement before it starts
    """

    def __init__(
        self,
        *,
        measure: bool = True,
        budget_s: float = 60.0,
        cold: bool = False,
        on_start: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._deadline = time.perf_counter() + budget_s
        self._cold = cold
        self._on_start = on_start
        self._verdicts = Verdicts() if measure else None
        self._unsure: defaultdict[tuple[object, ...], list[Mapping[str, float]]] = defaultdict(list)

    def __call__(self, candidates: Timed, layouts: Iterable[Layout], tokens: int) -> Times:
        """The product with `tokens` tokens in every dense way and in these layouts."""
        layouts = tuple(layouts)
        if self._verdicts is None:
            return predict_times(candidates, layouts, tokens, cold=self._cold)
        # Layers of the same shape whose zeros are about as many and lie alike share one verdict.
        weights = candidates.weights
        zeros = round(weights.sparsity, 2), round(weights.empty_blocks, 1), *(weights.block or ())
        key = (candidates.kind, *candidates.shape, tokens, *zeros, self._cold)
        dense = candidates.dense_names
        names = (*dense, *map(str, layouts))
        source: Source = "remembered"
        us = self._verdicts.get(key, names)
        if us is None:
            us, source = self._medians(key, names), "measured"
        if us is None:
            if time.perf_counter() > self._deadline:
                return predict_times(candidates, layouts, tokens, cold=self._cold)
            self._on_start(f"{candidates.title}, m={tokens}")
            ranking = self._measured(candidates, layouts, tokens)
            us = dict(ranking.us)
            # What is not sure counts now, for want of better, but is not remembered.
            if ranking.is_sure:
                self._verdicts.put(key, us)
            else:
                self._unsure[key].append(us)
        dense_us = {name: us[name] for name in dense}
        return Times(tokens, dense_us, {layout: us[str(layout)] for layout in layouts}, source)

    def _medians(self, key: tuple[object, ...], names: tuple[str, ...]) -> dict[str, float] | None:
        """Of the measurements that were not sure, if they are enough: times over that of the first name."""
        measured = [us for us in self._unsure[key] if set(names) <= set(us)]
        if len(measured) < _UNSURE:
            return None
        first_us = statistics.median(us[names[0]] for us in measured)
        return {
            name: first_us * statistics.median(us[name] / us[names[0]] for us in measured) for name in names
        }

    def _measured(self, candidates: Timed, layouts: tuple[Layout, ...], tokens: int) -> Ranking:
        """Measured again where the times are absurd; sure then only if both measurements say the same."""
        predicted = predict_times(candidates, layouts, tokens, cold=self._cold).by_name
        first = time_candidates(candidates, layouts, tokens, cold=self._cold)
        if _most_apart(candidates, first.us, predicted) < _ABSURD:
            return first
        again = time_candidates(candidates, layouts, tokens, cold=self._cold)
        if _most_apart(candidates, first.us, again.us) < _AGREES:
            return again
        likelier = min(first, again, key=lambda ranking: _most_apart(candidates, ranking.us, predicted))
        return replace(likelier, is_sure=False)


def _most_apart(candidates: Timed, us: Mapping[str, float], others: Mapping[str, float]) -> float:
    """The largest quotient, at least 1, of a time over the best dense one here and the same there."""
    dense_us, other_us = (min(times[name] for name in candidates.dense_names) for times in (us, others))
    logs = [math.log(us[name] / dense_us * other_us / others[name]) for name in us if others[name] < math.inf]
    return math.exp(max(map(abs, logs), default=0.0)) if other_us < math.inf else 1.0


@torch.inference_mode()
def time_candidates(
    candidates: Timed, layouts: Iterable[Layout], tokens: int, *, cold: bool = False
) -> Ranking:
    """All dense implementations and layouts, measured in turns, by name."""
    dense = candidates.dense(tokens)
    calls = {name: _calls(dense[name], candidates.nbytes(name), cold) for name in dense}
    for layout in layouts:
        make = candidates.sparse(layout, tokens)
        calls[str(layout)] = _calls(make, candidates.nbytes(layout), cold)
    return rank(calls, budget_s=_CANDIDATE_S * len(calls))


def _calls(make: Maker, nbytes: int, cold: bool) -> list[Call]:
    first = make()
    if not cold:
        return [first]
    start = time.perf_counter()
    first()
    # Where a call takes long, its weights are little of it, warm or cold.
    affordable = _WARM_UP_S / (time.perf_counter() - start)
    wanted = min(_COLD_CACHES * last_level_cache_bytes(), _MAX_COLD_BYTES) / max(nbytes, 1)
    copies = max(2, math.ceil(min(wanted, affordable, _MAX_COPIES)))
    return [first, *(make() for _ in range(copies - 1))]


def predict_times(
    candidates: Timed, layouts: tuple[Layout, ...], tokens: int, *, cold: bool = False
) -> Times:
    """Predicted times, without running anything."""
    dense = {name: candidates.predict(name, tokens, cold=cold) for name in candidates.dense_names}
    sparse = {layout: candidates.predict(layout, tokens, cold=cold) for layout in layouts}
    return Times(tokens, dense, sparse, "predicted")
