from __future__ import annotations

import math
import time

import pytest
import torch

from sparseinfer import _timing as timing


def test_interleave_takes_turns() -> None:
    order: list[str] = []
    calls = {name: [lambda name=name: order.append(name) or time.sleep(1e-3)] for name in "ab"}
    found = timing.interleave(calls, budget_s=0, min_rounds=3)
    # Warm: every sample is one untimed and one timed call.
    assert order[-12:] == list("aabb" * 3)
    for result in found.values():
        assert result.samples == 3
        assert 1e3 <= result.min_us <= result.median_us


def test_interleave_rotates_the_copies_of_a_cold_candidate() -> None:
    used: list[int] = []
    before: list[int] = []
    calls = {"a": [lambda i=i: used.append(i) or time.sleep(1e-3) for i in range(3)]}
    timing.interleave(calls, budget_s=0, min_rounds=4, before=lambda: before.append(len(used)))
    assert used[3:] == [i % 3 for i in range(len(used) - 3)]
    assert len(before) == len(used) - 3


def test_interleave_visits_a_slow_candidate_less_often() -> None:
    calls = {"fast": [lambda: time.sleep(1e-3)], "slow": [lambda: time.sleep(2e-2)]}
    found = timing.interleave(calls, budget_s=0.5, min_rounds=2)
    assert found["fast"].samples > 2 * found["slow"].samples
    assert found["slow"].samples >= 2


@pytest.mark.parametrize("calls", [{}, {"a": []}])
def test_interleave_refuses_nothing_to_time(calls: dict[str, list[timing.Call]]) -> None:
    with pytest.raises(ValueError, match="candidates: expected"):
        timing.interleave(calls, budget_s=1)


def test_num_threads_restores_the_count() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with timing.num_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before


def test_geometric_mean() -> None:
    assert timing.geometric_mean([1, 4, 16]) == pytest.approx(4)
    assert math.isnan(timing.geometric_mean([]))
