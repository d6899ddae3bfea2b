"""Ranking candidates by a clock that runs as the test says: bursts, drift, one slow candidate, near ties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import pytest

from sparseinfer import _timing
from sparseinfer._timing import Call
from sparseinfer.convert.timing import ranking
from sparseinfer.convert.timing.ranking import rank, ranked

# Seconds of extra time, or a factor: of the candidate's own seconds, of the time of day and of chance.
Noise = Callable[[float, float, Random], float]


class Machine:
    """A clock that only calls advance."""

    def __init__(self, noise: Noise, seed: int) -> None:
        self.now, self.noise, self.chance, self.calls = 0.0, noise, Random(seed), 0

    def perf_counter(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)

    def candidates(self, us: dict[str, float]) -> dict[str, Sequence[Call]]:
        def call(own_us: float) -> Call:
            def run() -> None:
                self.calls += 1
                self.now += self.noise(own_us * 1e-6, self.now, self.chance)

            return run

        return {name: [call(own_us)] for name, own_us in us.items()}


def quiet(own: float, now: float, chance: Random) -> float:
    return own * chance.uniform(1.0, 1.02)


def bursts(own: float, now: float, chance: Random) -> float:
    """Every third call or so another process has the core for a time slice."""
    return quiet(own, now, chance) + (chance.uniform(0.5, 3) * own if chance.random() < 0.3 else 0.0)


def drift(own: float, now: float, chance: Random) -> float:
    """The clock of the CPU falls to two thirds within half a second."""
    return quiet(own, now, chance) * (1 + min(now, 0.5))


def busy_neighbour(own: float, now: float, chance: Random) -> float:
    """In 60 of 100 milliseconds everything takes twice as long."""
    return quiet(own, now, chance) * (2 if now % 0.1 < 0.06 else 1)


NOISES = {"quiet": quiet, "bursts": bursts, "drift": drift, "busy neighbour": busy_neighbour}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Noise, int], Machine]:
    def make(noise: Noise, seed: int) -> Machine:
        made = Machine(noise, seed)
        for module in (_timing, ranking):
            monkeypatch.setattr(module, "time", made)
        return made

    return make


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("scale", "budget_s"), [(1.0, 0.15), (40.0, 1.0)])
def test_the_fastest_is_found(
    machine: Callable[[Noise, int], Machine], noise: str, scale: float, budget_s: float
) -> None:
    us = {"dense": 100.0, "prepacked": 93.0, "sell": 61.0, "bitmap": 66.0, "slow": 900.0}
    right = sure = 0
    for seed in range(40):
        made = machine(NOISES[noise], seed)
        found = rank(made.candidates({name: time * scale for name, time in us.items()}), budget_s=budget_s)
        right += min(found.us, key=lambda name: found.us[name]) == "sell"
        sure += found.is_sure
        if found.is_sure:
            assert found.us["sell"] < found.us["bitmap"]
            assert found.us["sell"] / found.us["dense"] == pytest.approx(0.61, rel=0.1)
    assert right >= 39, right
    assert sure >= 30, sure


def test_equal_candidates_end_early_and_sure(machine: Callable[[Noise, int], Machine]) -> None:
    made = machine(quiet, 0)
    found = rank(made.candidates({"a": 100.0, "b": 100.5}), budget_s=0.02)
    assert found.is_sure
    assert made.now < 0.03


def test_what_cannot_be_told_ends_unsure(machine: Callable[[Noise, int], Machine]) -> None:
    made = machine(lambda own, now, chance: own * math.exp(chance.gauss(0, 0.4)), 1)
    found = rank(made.candidates({"a": 100.0, "b": 104.0}), budget_s=0.02)
    assert not found.is_sure
    assert 0.08 <= made.now < 0.12


def test_close_calls_get_more_rounds(machine: Callable[[Noise, int], Machine]) -> None:
    rounds = {}
    for rival in (104.0, 150.0):
        made = machine(lambda own, now, chance: own * math.exp(chance.gauss(0, 0.1)), 2)
        rank(made.candidates({"a": 100.0, "b": rival}), budget_s=0.002)
        rounds[rival] = made.calls
    assert rounds[104.0] > 2 * rounds[150.0]


def test_a_slow_candidate_costs_few_samples(machine: Callable[[Noise, int], Machine]) -> None:
    made = machine(quiet, 3)
    found = rank(made.candidates({"fast": 100.0, "slow": 20_000.0}), budget_s=0.2)
    assert found.is_sure
    assert found.us["slow"] / found.us["fast"] == pytest.approx(200, rel=0.05)
    assert made.now < 0.5


def test_a_slow_candidate_of_few_samples_of_which_some_were_disturbed() -> None:
    fast = {round_: 1.0 + 0.01 * (round_ % 2) for round_ in range(5)}
    assert ranked({"fast": fast, "slow": {0: 12.0, 1: 30.0}}).is_sure
    assert not ranked({"fast": fast, "slow": {0: 12.0}}).is_sure
    assert not ranked({"fast": fast, "slow": {0: 2.0, 1: 30.0}}).is_sure
    assert not ranked({"fast": {**fast, 1: 15.0}, "slow": {0: 12.0, 1: 30.0}}).is_sure
