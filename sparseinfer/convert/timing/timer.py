"""Times a product on this machine with every dense implementation and sparse layout."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch

from sparseinfer._machine import last_level_cache_bytes
from sparseinfer._timing import Call, Timing, interleave
from sparseinfer.convert.candidates.base import Candidates, Maker
from sparseinfer.convert.timing.times import Source, Times
from sparseinfer.convert.timing.verdicts import Verdicts
from sparseinfer.ops import Layout

# Measuring one candidate: seconds, and rounds at least. Chosen, not measured: a model of 50 products at 4
# token counts with 6 candidates each then takes 36 s, within the default budget.
_CANDIDATE_S = 0.03
_MIN_ROUNDS = 3

# What is remembered must have a median of at most so many times its minimum; else other work disturbed it.
# Chosen, not measured.
_MAX_SPREAD = 1.5

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

    def __call__(self, candidates: Candidates, layouts: Iterable[Layout], tokens: int) -> Times:
        """The product with `tokens` tokens in every dense way and in these layouts."""
        layouts = tuple(layouts)
        if self._verdicts is None:
            return predict_times(candidates, layouts, tokens)
        # Layers of the same shape whose zeros are about as many and lie alike share one verdict.
        weights = candidates.weights
        zeros = round(weights.sparsity, 2), round(weights.empty_blocks, 1)
        key = (candidates.kind, *candidates.shape, tokens, *zeros, self._cold)
        dense = candidates.dense_names
        us = self._verdicts.get(key, (*dense, *map(str, layouts)))
        source: Source = "remembered"
        if us is None:
            if time.perf_counter() > self._deadline:
                return predict_times(candidates, layouts, tokens)
            self._on_start(f"{candidates.title}, m={tokens}")
            timings, source = time_candidates(candidates, layouts, tokens, cold=self._cold), "measured"
            us = {name: timing.min_us for name, timing in timings.items()}
            # What was disturbed counts now, for want of better, but is not remembered.
            if all(timing.median_us < _MAX_SPREAD * timing.min_us for timing in timings.values()):
                self._verdicts.put(key, us)
        dense_us = {name: us[name] for name in dense}
        return Times(tokens, dense_us, {layout: us[str(layout)] for layout in layouts}, source)


@torch.inference_mode()
def time_candidates(
    candidates: Candidates, layouts: Iterable[Layout], tokens: int, *, cold: bool = False
) -> dict[str, Timing]:
    """Times of all dense implementations and layouts, measured in turns, by name."""
    dense_nbytes = candidates.dense_weights.nbytes
    calls = {name: _calls(make, dense_nbytes, cold) for name, make in candidates.dense(tokens).items()}
    for layout in layouts:
        nbytes = sum(packed.nbytes for packed in candidates.packed(layout))
        calls[str(layout)] = _calls(candidates.sparse(layout, tokens), nbytes, cold)
    return interleave(calls, budget_s=_CANDIDATE_S * len(calls), min_rounds=_MIN_ROUNDS)


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


def predict_times(candidates: Candidates, layouts: tuple[Layout, ...], tokens: int) -> Times:
    """Predicted times, without running anything."""
    dense = {name: candidates.predict(name, tokens) for name in candidates.dense_names}
    sparse = {layout: candidates.predict(layout, tokens) for layout in layouts}
    return Times(tokens, dense, sparse, "predicted")
