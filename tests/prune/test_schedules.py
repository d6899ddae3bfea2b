"""Schedules and the Pruner that follows them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from masks_helpers import OPTIMIZERS, data, descend, model
from torch import nn

from sparseinfer.prune import (
    ERK,
    NM,
    Cubic,
    Geometric,
    Linear,
    Magnitude,
    OneShot,
    Pruner,
    Random,
    Schedule,
    Wanda,
    calibrate,
    hold_masks_,
    masks_of,
)

LAYERS = ("0", "3", "5")


def sparsities(net: nn.Module) -> list[float]:
    return [1 - float(mask.double().mean()) for mask in masks_of(net).values()]


def run(net: nn.Module, pruner: Pruner, optimizer: torch.optim.Optimizer, steps: int) -> list[int]:
    """Train; the steps after which something was pruned."""
    x, y = data()
    found = []
    for step in range(1, steps + 1):
        descend(optimizer, nn.functional.mse_loss(net(x), y))
        if pruner.step() is not None:
            found.append(step)
    return found


class TestShapes:
    def test_zhu_and_gupta(self) -> None:
        """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Δt))³, from their first step after s_i = 0 on."""
        begin, every, n, final = 20, 10, 8, 0.87
        t0 = begin - every
        t = np.arange(begin, t0 + n * every + 1, every)
        expected = final + (0 - final) * (1 - (t - t0) / (n * every)) ** 3
        schedule = Cubic(begin, int(t[-1]), every)
        assert list(schedule.events) == t.tolist()
        got = [schedule.sparsity(step, final) for step in schedule.events]
        np.testing.assert_allclose(got, expected, rtol=1e-12)

    def test_a_tenth_each_time(self) -> None:
        schedule = Linear(100, 1000, 100)
        got = [schedule.sparsity(step, 0.5) for step in schedule.events]
        np.testing.assert_allclose(got, 0.05 * np.arange(1, 11), rtol=1e-12)

    def test_the_same_part_of_what_is_left(self) -> None:
        schedule = Geometric(10, 40, 10)
        density = [1.0] + [1 - schedule.sparsity(step, 1 - 0.8**4) for step in schedule.events]
        np.testing.assert_allclose(np.divide(density[1:], density[:-1]), 0.8, rtol=1e-12)

    @pytest.mark.parametrize("schedule", [OneShot(7), Linear(1, 9, 4), Cubic(3, 3, 1), Geometric(2, 30, 7)])
    def test_it_ends_exactly_where_it_was_told_to(self, schedule: Schedule) -> None:
        assert schedule.sparsity(schedule.events[-1], 0.9) == 0.9
        got = [schedule.sparsity(step, 0.9) for step in schedule.events]
        assert got == sorted(got)
        assert got[0] > 0

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: Cubic(0, 10, 5), ValueError, "begin: expected at least 1, got 0"),
            (lambda: Cubic(1, 10, 0), ValueError, "every: expected at least 1, got 0"),
            (lambda: Linear(5, 4, 1), ValueError, "end: expected at least 5, got 4"),
            (
                lambda: Linear(5, 14, 5),
                ValueError,
                "end: expected begin plus a multiple of every, got 14 with begin=5 and every=5",
            ),
            (lambda: Geometric(1.5, 4, 1), TypeError, "begin: expected an int, got float"),
            (lambda: OneShot(True), TypeError, "at: expected an int, got bool"),
        ],
    )
    def test_bad_steps(self, make, error, message) -> None:
        with pytest.raises(error) as raised:
            make()
        assert str(raised.value) == message


class TestPruner:
    def test_each_event_reaches_its_sparsity_and_what_is_pruned_stays_pruned(self) -> None:
        net = model()
        schedule = Cubic(2, 10, 4)
        pruner = Pruner(net, Magnitude(0.75), schedule)
        optimizer = OPTIMIZERS["adamw"](list(net.parameters()))
        x, y = data()
        kept = {fqn: torch.ones_like(net.get_submodule(fqn).weight, dtype=torch.bool) for fqn in LAYERS}
        for step in range(1, 13):
            descend(optimizer, nn.functional.mse_loss(net(x), y))
            report = pruner.step()
            assert (report is not None) == (step in (2, 6, 10))
            assert pruner.done == (step >= 10)
            if report is not None:
                for layer in report.layers:
                    wanted = round(schedule.sparsity(step, 0.75) * layer.numel)
                    assert layer.nnz == layer.numel - wanted
                for fqn, mask in masks_of(net).items():
                    assert not (mask & ~kept[fqn]).any()
                    kept[fqn] = mask.clone()
        assert all(torch.equal(net.get_submodule(fqn).weight != 0, mask) for fqn, mask in kept.items())

    def test_one_shot_is_prune_(self) -> None:
        net = model()
        pruner = Pruner(net, Magnitude(0.5, scope="global"), OneShot(2))
        run(net, pruner, torch.optim.SGD(net.parameters(), lr=0.0), 1)
        assert masks_of(net) == {}
        run(net, pruner, torch.optim.SGD(net.parameters(), lr=0.0), 1)
        weights = torch.cat([net.get_submodule(fqn).weight.flatten() for fqn in LAYERS])
        dense = torch.cat([model().get_submodule(fqn).weight.flatten() for fqn in LAYERS])
        median = dense.abs().sort().values[round(0.5 * len(dense))]
        assert torch.equal(weights, torch.where(dense.abs() >= median, dense, 0))

    def test_a_mapping_and_a_budget_are_scheduled_layer_by_layer(self) -> None:
        net = model()
        pruner = Pruner(net, Random({"0": 0.0, "3": 0.8, "5": 0.4}), Linear(1, 2, 1))
        pruner.step()
        assert sparsities(net) == pytest.approx([0, 0.4, 0.2], abs=0.02)
        pruner.step()
        assert sparsities(net) == pytest.approx([0, 0.8, 0.4], abs=0.02)
        net = model()
        pruner = Pruner(net, Random(ERK(0.8)), Linear(1, 2, 1))
        totals = [report.nnz for report in (pruner.step(), pruner.step())]
        numel = sum(net.get_submodule(fqn).weight.numel() for fqn in LAYERS)
        assert totals == [numel - round(0.4 * numel), numel - round(0.8 * numel)]

    def test_calibration_is_taken_anew_each_time(self) -> None:
        net = model()
        calls = []

        def calibration():
            calls.append(sum(sparsities(net)))
            return calibrate(net, [data()[0]], gram=False)

        pruner = Pruner(net, Wanda(0.5), Linear(1, 3, 2), calibration=calibration, targets=["3", "5"])
        for _ in range(4):
            pruner.step()
        assert len(calls) == 2
        assert calls[0] == 0 < calls[1]
        assert list(masks_of(net)) == ["3", "5"]

    @pytest.mark.parametrize("rewind_to", [0, 3])
    def test_rewind(self, rewind_to: int) -> None:
        net, twin = model(), model()
        optimizer = OPTIMIZERS["adam"](list(net.parameters()))
        pruner = Pruner(net, Magnitude(0.6), Geometric(5, 15, 5), rewind_to=rewind_to, optimizer=optimizer)
        other = OPTIMIZERS["adam"](list(twin.parameters()))
        run(twin, Pruner(twin, Magnitude(0), OneShot(99)), other, rewind_to)
        for _ in range(3):
            assert run(net, pruner, optimizer, 5) == [5]
            state, masks = dict(twin.named_parameters()), masks_of(net)
            for name, parameter in net.named_parameters():
                fqn, _, kind = name.rpartition(".")
                expected = state[name] * masks[fqn] if kind == "weight" else state[name]
                assert torch.equal(parameter, expected)
            assert len(optimizer.state) == (0 if rewind_to == 0 else len(state))
            for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
                if rewind_to:
                    assert torch.equal(optimizer.state[mine]["exp_avg"], other.state[theirs]["exp_avg"])
        assert sparsities(net) == pytest.approx([0.6] * 3, abs=0.02)

    def test_resumed_it_goes_on_as_if_nothing_had_happened(self) -> None:
        def start():
            net = model()
            optimizer = OPTIMIZERS["adam"](list(net.parameters()))
            return net, optimizer, Pruner(net, Magnitude(0.7), Geometric(4, 12, 4), rewind_to=1)

        net, optimizer, pruner = start()
        run(net, pruner, optimizer, 6)
        saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), pruner.state_dict()))
        run(net, pruner, optimizer, 7)

        again, optimizer, pruner = start()
        hold_masks_(again, masks_of(saved[0]))
        for each, state in zip((again, optimizer, pruner), saved, strict=True):
            each.load_state_dict(state)
        assert run(again, pruner, optimizer, 7) == [2, 6]
        expected = net.state_dict()
        assert list(again.state_dict()) == list(expected)
        assert all(torch.equal(t, expected[name]) for name, t in again.state_dict().items())

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "message"),
        [
            ((0.5, OneShot()), {}, TypeError, "method: expected a pruning method such as Magnitude(0.5)"),
            ((Magnitude(0.5), 9), {}, TypeError, "schedule: expected one such as Cubic(100, 1000, 100)"),
            ((Magnitude(pattern=NM(2, 4)), Linear(1, 3, 1)), {}, ValueError, "method: expected a sparsity"),
            ((Magnitude(threshold=0.1), Linear(1, 3, 1)), {}, ValueError, "method: expected a sparsity"),
            ((Magnitude(0.5), OneShot(3)), {"rewind_to": 3}, ValueError, "rewind_to: expected a step from 0"),
            ((Magnitude(0.5), OneShot(3)), {"calibration": 1}, TypeError, "calibration: expected a callable"),
        ],
    )
    def test_bad_input(self, arguments, options, error, message) -> None:
        with pytest.raises(error) as raised:
            Pruner(model(), *arguments, **options)
        assert str(raised.value).startswith(message)
