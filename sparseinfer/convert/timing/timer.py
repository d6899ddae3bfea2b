"""How long a layer takes on this machine, densely and in each layout: timed, remembered or predicted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from sparseinfer._machine import last_level_cache_bytes
from sparseinfer._timing import Timing, interleave
from sparseinfer.convert.cases import Call, Case, Maker
from sparseinfer.convert.verdicts import Verdicts
from sparseinfer.ops import Layout

Source = Literal["measured", "remembered", "predicted"]
SOURCES = get_args(Source)

# More tokens than this take the same kernels in the same loops: times per token no longer change.
MAX_TOKENS = 256
_CANDIDATE_S = 0.03
_MIN_ROUNDS = 3

# Medians of an undisturbed machine are at most so many times the minimum.
_MAX_SPREAD = 1.5

# Copies of a cold weight fill the last-level cache this many times, within reason.
_COLD_CACHES = 1.5
_MAX_COLD_BYTES = 256 << 20
_MAX_COPIES = 256
# Seconds for one call of each copy.
_WARM_UP_S = 0.05


@dataclass(frozen=True)
class Times:
    """Microseconds per call with `tokens` tokens, by name of the dense way and by layout."""

    tokens: int
    dense: Mapping[str, float]
    sparse: Mapping[Layout, float]
    source: Source = "measured"

    @property
    def best_dense(self) -> str:
        return min(self.dense, key=lambda name: self.dense[name])

    @property
    def dense_us(self) -> float:
        """Of the best dense."""
        return min(self.dense.values())

    def ratio(self, layout: Layout) -> float:
        """Sparse time over best dense time; infinity where neither is known: the layer stays as it is."""
        return self.sparse[layout] / self.dense_us if math.isfinite(self.dense_us) else math.inf


class Timer:
    """Answers from the verdicts of earlier conversions, else by measuring, else by the cost model.

    measure    False: never measure, and ask no earlier measurement
    budget_s   seconds to spend on measuring in all; what is left then is predicted
    cold       weights come from memory: they take turns with copies that exceed the last-level cache
    on_case    told of every case that is about to be measured
    """

    def __init__(
        self,
        *,
        measure: bool = True,
        budget_s: float = 60.0,
        cold: bool = False,
        on_case: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._deadline = time.perf_counter() + budget_s
        self._measure = measure
        self._cold = cold
        self._on_case = on_case
        self._verdicts = Verdicts() if measure else None

    def __call__(self, case: Case, layouts: Iterable[Layout], tokens: int) -> Times:
        """The layer with `tokens` tokens in every dense way and in these layouts."""
        layouts = tuple(layouts)
        if self._verdicts is None:
            return predict_times(case, layouts, tokens)
        # Layers of the same shape whose zeros are about as many and lie alike share one verdict.
        weights = case.weights
        key = (
            case.kind,
            *case.shape,
            tokens,
            round(weights.sparsity, 2),
            round(weights.empty_blocks, 1),
            self._cold,
        )
        dense = case.dense_names
        names = (*dense, *map(str, layouts))
        found = self._verdicts.get(key, names)
        source: Source = "remembered"
        if found is None:
            if time.perf_counter() > self._deadline:
                return predict_times(case, layouts, tokens)
            self._on_case(f"{case.title}, m={tokens}")
            timings, source = time_case(case, layouts, tokens, cold=self._cold), "measured"
            found = {name: timing.min_us for name, timing in timings.items()}
            # What was disturbed counts now, for want of better, but is not remembered.
            if all(timing.median_us < _MAX_SPREAD * timing.min_us for timing in timings.values()):
                self._verdicts.put(key, found)
        return Times(
            tokens,
            {name: found[name] for name in dense},
            {layout: found[str(layout)] for layout in layouts},
            source,
        )


@torch.inference_mode()
def time_case(case: Case, layouts: Iterable[Layout], tokens: int, *, cold: bool = False) -> dict[str, Timing]:
    """Every dense way and every layout, in turns, by name."""
    calls = {name: _calls(make, case.dense_weights.nbytes, cold) for name, make in case.dense(tokens).items()}
    for layout in layouts:
        nbytes = sum(packed.nbytes for packed in case.packed(layout))
        calls[str(layout)] = _calls(case.sparse(layout, tokens), nbytes, cold)
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


def predict_times(case: Case, layouts: tuple[Layout, ...], tokens: int) -> Times:
    """By the cost model of the case."""
    dense = {name: case.predict(name, tokens) for name in case.dense_names}
    sparse = {layout: case.predict(str(layout), tokens) for layout in layouts}
    return Times(tokens, dense, sparse, "predicted")
