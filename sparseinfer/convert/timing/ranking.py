"""Which of several candidates is fastest, told on a machine that has other work to do.

Times on such a machine are disturbed in three ways, and each is met here:

    bursts   some samples take much longer: rounds with such a sample are left out
    drift    all samples become slower together: candidates are compared within a round, never across rounds
    chance   two candidates are nearly equal: they get more rounds, until the order is sure, they are known to
             be equal, or patience ends
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparseinfer._timing import Call, prepared

# Rounds before anything is said: with five pairs, all of one sign, the order is sure with 94 %.
_MIN_ROUNDS = 5
# A candidate that takes this many times as long as the fastest in every round needs no more than these.
_MUCH_SLOWER = 3.0
_MIN_SAMPLES = 2
# Where the order is not sure, so many times the budget. Chosen, not measured.
_PATIENCE = 4
# A sample this many times as long as a quarter of its candidate's samples was disturbed by other work.
_DISTURBED = 1.5
# Candidates that differ by less count as equal: whichever is taken, nothing is lost.
_EQUAL = 0.02

# By name of the candidate and number of the round: seconds per call.
Samples = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Ranking:
    """Microseconds per call by name of the candidate: their ratios are what was compared.

    is_sure   the fastest is faster than each of the others, or equal to it, in 94 of 100 such measurements
    """

    us: Mapping[str, float]
    is_sure: bool


def rank(candidates: Mapping[str, Sequence[Call]], *, budget_s: float) -> Ranking:
    """Times the candidates in turns, for `budget_s` seconds, or longer until the order is sure.

    A candidate with several calls is timed cold, as in `_timing.interleave`.
    """
    samplers, periods = prepared(candidates)
    samples: dict[str, dict[int, float]] = {name: {} for name in samplers}
    start, look_again = time.perf_counter(), _MIN_ROUNDS
    for round_ in itertools.count():
        for name, sampler in samplers.items():
            if round_ % periods[name] == 0 or round_ < _MIN_SAMPLES:
                samples[name][round_] = sampler.sample()
        spent_s = time.perf_counter() - start
        if round_ + 1 < look_again or spent_s < budget_s:
            continue
        ranking = ranked(samples)
        if ranking.is_sure or spent_s > _PATIENCE * budget_s:
            return ranking
        look_again = round(1.25 * (round_ + 1))
    raise AssertionError("unreachable")


def ranked(samples: Samples) -> Ranking:
    """What samples of the same rounds say of their candidates."""
    quiet = {name: _quiet(times) for name, times in samples.items()}
    leader = min(samples, key=lambda name: _quarter(samples[name]))
    logs = {name: _log_ratios(samples, quiet, name, leader) for name in samples}
    medians = {name: statistics.median(logs[name]) for name in samples}
    better = min(medians, key=lambda name: medians[name])
    if medians[better] < 0:
        leader = better
        logs = {name: _log_ratios(samples, quiet, name, leader) for name in samples}
    leader_us = 1e6 * min(samples[leader].values())
    us = {name: leader_us * math.exp(statistics.median(logs[name])) for name in samples}
    others = [name for name in samples if name != leader]
    sure = (_is_sure(logs[name]) or _is_much_slower(samples[name], samples[leader]) for name in others)
    return Ranking(us, all(sure))


def _quiet(times: Mapping[int, float]) -> set[int]:
    """The rounds in which the candidate was not disturbed."""
    limit = _DISTURBED * _quarter(times)
    return {round_ for round_, seconds in times.items() if seconds <= limit}


def _quarter(times: Mapping[int, float]) -> float:
    """The time that a quarter of the samples stays below."""
    return sorted(times.values())[len(times) // 4]


def _log_ratios(samples: Samples, quiet: Mapping[str, set[int]], name: str, leader: str) -> list[float]:
    """log of a candidate's time over the leader's, in each undisturbed round that both have, ascending.

    Where no round is undisturbed, of the one with the least sum of both.
    """
    both = samples[name].keys() & samples[leader].keys()
    rounds = both & quiet[name] & quiet[leader]
    if not rounds:
        rounds = {min(both, key=lambda r: samples[name][r] + samples[leader][r])}
    return sorted(math.log(samples[name][r] / samples[leader][r]) for r in rounds)


def _is_much_slower(times: Mapping[int, float], leading: Mapping[int, float]) -> bool:
    """Whether that holds in every round, however disturbed: one visited rarely may have no other rounds."""
    ratios = [times[round_] / leading[round_] for round_ in times.keys() & leading.keys()]
    return len(ratios) >= _MIN_SAMPLES and min(ratios) > _MUCH_SLOWER


def _is_sure(logs: Sequence[float]) -> bool:
    """Whether it is slower than the leader, or equal to it, by a sign test of the median at 94 % or more."""
    if len(logs) < _MIN_ROUNDS:
        return len(logs) >= _MIN_SAMPLES and logs[0] > math.log(_MUCH_SLOWER)  # in the undisturbed rounds
    outside = max(0, math.floor(len(logs) / 2 - 0.98 * math.sqrt(len(logs))))
    low, high = logs[outside], logs[-1 - outside]
    return low > 0 or (low > -_EQUAL and high < _EQUAL)
