"""Round-robin timing: candidates take turns, so that a noisy machine disturbs all of them alike.

Only ratios within one run are meaningful. Compare minima; the median shows the noise.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Call = Callable[[], object]

# A sample shorter than this repeats its call: the clock and the Python loop, some 0.3 us together, then cost
# less than 1 % of it.
_MIN_SAMPLE_S = 50e-6
# One call of at least this tells how slow a candidate is; of faster ones the least of three. Chosen, not
# measured: longer than a turn of the scheduler, so that an interruption does not double it.
_SLOW_S = 20e-3
# A candidate this many times slower than the fastest one is visited in fewer rounds, but in every eighth.
# Chosen, not measured: it cannot be the best any more, and its time need not be as sharp.
_SLOW_FACTOR = 4
_MAX_PERIOD = 8
# Of `interleave`, unless the caller says otherwise. Chosen, not measured: the least of seven samples is
# rarely disturbed, and 5000 of the shortest take a quarter of a second.
_MIN_ROUNDS, _MAX_ROUNDS = 7, 5000


@dataclass(frozen=True)
class Timing:
    """One candidate's result. `min_us` and `median_us` are microseconds per call over `samples` samples.

    spread   half the distance between the quartiles of the samples, over their median
    """

    min_us: float
    median_us: float
    samples: int
    spread: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of the seconds per call of each sample."""
        low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [*seconds] * 3
        return cls(min(seconds) * 1e6, median * 1e6, len(seconds), (high - low) / (2 * median))


@runtime_checkable
class SelfTimed(Protocol):
    """A candidate with a clock of its own, such as one in another process.

    estimate_s   about how many seconds one call takes
    """

    estimate_s: float

    def sample(self) -> float:
        """Seconds per call."""


def sample(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Fixed random numbers on the CPU to time a layer with; the caller's random state is unchanged."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)


def waited_for(call: Call, device: torch.device) -> Call:
    """The call, followed by waiting for the work it started on a GPU."""

    def run() -> None:
        call()
        torch.cuda.synchronize(device)

    return run


def interleave(
    candidates: Mapping[str, Sequence[Call] | SelfTimed],
    *,
    budget_s: float,
    min_rounds: int = _MIN_ROUNDS,
    max_rounds: int = _MAX_ROUNDS,
    before: Call | None = None,
) -> dict[str, Timing]:
    """Times the candidates for `budget_s` seconds, or longer until each of them has `min_rounds` samples.

    Two samples are enough for a candidate that is several times slower than the fastest.

    A candidate with one call is timed warm: an untimed call first brings its weights into the cache. One with
    several calls is timed cold: the calls do the same work on different copies of the weights, in turns.
    `before` runs ahead of every cold sample, untimed (it brings the activations back into the cache). One
    that is `SelfTimed` says its samples itself.
    """
    if not candidates or not all(candidates.values()):
        raise ValueError("candidates: expected at least one name, each with at least one call, got none")
    samplers, periods = prepared(candidates, before)
    wanted = {name: min_rounds if periods[name] == 1 else min(min_rounds, 2) for name in samplers}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for round_ in itertools.count():
        enough = all(len(samples[name]) >= wanted[name] for name in samples)
        if (enough and time.perf_counter() - start >= budget_s) or round_ >= max_rounds:
            break
        for name, sampler in samplers.items():
            if round_ % periods[name] == 0 or (len(samples[name]) < wanted[name] and round_ < min_rounds):
                samples[name].append(sampler.sample())
    return {name: Timing.of(seconds) for name, seconds in samples.items() if seconds}


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Sets torch's intra-op threads for the block, then restores the earlier count."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def geometric_mean(values: Sequence[float]) -> float:
    """NaN for an empty sequence; the values must be positive."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def prepared(
    candidates: Mapping[str, Sequence[Call] | SelfTimed], before: Call | None = None
) -> tuple[dict[str, SelfTimed], dict[str, int]]:
    """A sampler for each candidate, and every how many rounds it is visited: slow ones more rarely."""
    samplers = {
        name: one if isinstance(one, SelfTimed) else Sampler(one, before) for name, one in candidates.items()
    }
    fastest_s = min(sampler.estimate_s for sampler in samplers.values())
    return samplers, {name: _period(sampler.estimate_s, fastest_s) for name, sampler in samplers.items()}


def _period(estimate_s: float, fastest_s: float) -> int:
    return max(1, min(_MAX_PERIOD, round(estimate_s / (_SLOW_FACTOR * fastest_s))))


class Sampler:
    """Times one candidate; see `interleave`. `estimate_s`: about how many seconds one call takes."""

    def __init__(self, calls: Sequence[Call], before: Call | None) -> None:
        self._warm = len(calls) == 1
        self._before = before
        self._next = itertools.cycle(calls).__next__
        for call in calls:
            call()
        self._repeats = 1
        self.estimate_s = self.sample()
        if self.estimate_s < _SLOW_S:
            self.estimate_s = min(self.estimate_s, self.sample(), self.sample())
        self._repeats = max(1, math.ceil(_MIN_SAMPLE_S / self.estimate_s))

    def sample(self) -> float:
        """Seconds per call."""
        if self._warm:
            self._next()()
        elif self._before is not None:
            self._before()
        calls = [self._next() for _ in range(self._repeats)]
        start = time.perf_counter_ns()
        for call in calls:
            call()
        return (time.perf_counter_ns() - start) * 1e-9 / self._repeats
