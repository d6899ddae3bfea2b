"""The latency budget: of all choices that keep to the target that of least error, found by trying all."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_budgets import statistics
from test_sensitivity import network
from torch import nn

from sparseinfer.prune import (
    NM,
    Block,
    LatencyBudget,
    LatencyTable,
    Magnitude,
    Unstructured,
    Wanda,
    prunable_layers,
    prune_,
)
from sparseinfer.prune.budgets.latency_table import DENSE

OPTIONS = [(s, pattern) for s in (0.5, 0.75, 0.9) for pattern in (Unstructured(), Block(4, 4))]
OPTIONS.append((0.5, NM(2, 4)))


def table(seed: int = 0) -> LatencyTable:
    """Times that fall with the sparsity, more so for blocks, and differ from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    us = {}
    for fqn, size in (("0", 512), ("2", 512), ("4", 128)):
        dense = size * float(torch.rand((), generator=generator) + 0.5)
        noise = torch.rand(len(OPTIONS), generator=generator).tolist()
        us[fqn] = {DENSE: dense} | {
            option: dense * (1.2 - option[0]) * (0.7 + 0.6 * each) * (0.6 if option[1] == Block(4, 4) else 1)
            for option, each in zip(OPTIONS, noise, strict=True)
        }
    return LatencyTable(us)


class TestChoose:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("speedup", [1.0, 1.3, 1.8, 2.5])
    def test_no_choice_within_the_target_costs_less(self, seed: int, speedup: float) -> None:
        layers, us = prunable_layers(network()), table(seed)
        stats = statistics(layers)
        target = us.dense_us / speedup
        chosen = LatencyBudget(us, speedup=speedup).choose(layers, stats, Magnitude(0.0))
        assert list(chosen) == list(layers)
        assert sum(choice.us for choice in chosen.values()) <= target * (1 + 1e-9)
        for fqn, choice in chosen.items():
            assert choice.us == us.us[fqn][choice.sparsity, choice.pattern]
            assert choice.error == pytest.approx(
                self.error(layers, stats, fqn, choice.sparsity, choice.pattern)
            )

        menus = [
            [(t, self.error(layers, stats, fqn, *option)) for option, t in us.us[fqn].items()]
            for fqn in layers
        ]
        fastest = sum(min(t for t, _ in menu) for menu in menus)
        # Every time is rounded up to a cell of 1 / (200 · layers) of what there is to spend.
        tight = target - (target - fastest) / 200

        def best(limit: float) -> float:
            mixes = itertools.product(*menus)
            return min(
                (sum(e for _, e in mix) for mix in mixes if sum(t for t, _ in mix) <= limit), default=math.inf
            )

        got = sum(choice.error for choice in chosen.values())
        assert best(target) - 1e-9 <= got <= best(tight) + 1e-9

    def error(self, layers, stats, fqn: str, sparsity: float, pattern) -> float:
        if (sparsity, pattern) == DENSE:
            return 0.0
        method = (
            Magnitude(pattern=pattern) if isinstance(pattern, NM) else Magnitude(sparsity, pattern=pattern)
        )
        mask = method.prune({fqn: layers[fqn]}, None)[fqn].mask
        weight = layers[fqn].weight.detach()
        return stats[fqn].relative_error(weight[None], (weight * mask)[None])

    def test_the_fastest_choices_are_within_reach_and_no_less(self) -> None:
        layers, us = prunable_layers(network()), table()
        fastest = sum(min(options.values()) for options in us.us.values())
        stats = statistics(layers)
        chosen = LatencyBudget(us, target_us=fastest).choose(layers, stats, Magnitude(0.0))
        assert sum(choice.us for choice in chosen.values()) == pytest.approx(fastest, rel=1e-12)
        with pytest.raises(ValueError, match=r"target_us: expected at least \d+\.\d us, got"):
            LatencyBudget(us, target_us=0.99 * fastest).choose(layers, stats, Magnitude(0.0))

    def test_without_hurry_everything_stays_dense(self) -> None:
        layers = prunable_layers(network())
        chosen = LatencyBudget(table(), speedup=1.0).choose(layers, statistics(layers), Magnitude(0.0))
        assert {(choice.sparsity, choice.error) for choice in chosen.values()} == {(0.0, 0.0)}

    def test_layers_that_run_as_one_matrix(self) -> None:
        """One option for both, and none of those that only one of them has."""
        us = {fqn: dict(options) for fqn, options in table().us.items()}
        del us["2"][0.9, Block(4, 4)]
        layers = prunable_layers(network())
        stats = statistics(layers)
        joined = LatencyTable(us, [["0", "2"]])
        fastest = min(us["0"][option] + us["2"][option] for option in us["2"]) + min(us["4"].values())
        chosen = LatencyBudget(joined, target_us=fastest).choose(layers, stats, Magnitude(0.0))
        assert sum(choice.us for choice in chosen.values()) == pytest.approx(fastest)
        first, second = chosen["0"], chosen["2"]
        assert (first.sparsity, first.pattern) == (second.sparsity, second.pattern)
        assert first.us == us["0"][first.sparsity, first.pattern]
        free = LatencyBudget(LatencyTable(us), target_us=fastest).choose(layers, stats, Magnitude(0.0))
        assert sum(c.error for c in free.values()) < sum(c.error for c in chosen.values())

    def test_evaluate(self) -> None:
        """A loss that minds one layer alone: that one stays dense, and the model comes back as it was."""
        model, us = network(), table()
        before = {name: t.clone() for name, t in model.state_dict().items()}

        def loss() -> float:
            return 3.0 + float((model[0].weight - before["0.weight"]).square().sum())

        budget = LatencyBudget(us, speedup=1.3, evaluate=loss)
        assert budget.needs == set()
        with torch.no_grad():
            chosen = budget.choose(prunable_layers(model), None, Magnitude(0.0))
        assert (chosen["0"].sparsity, chosen["0"].error) == (0.0, 0.0)
        assert chosen["2"].sparsity > 0
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    def test_tries_with_another_method(self) -> None:
        layers = prunable_layers(network())
        stats = statistics(layers)
        own = LatencyBudget(table(), speedup=1.8).choose(layers, stats, Wanda(0.0))
        other = LatencyBudget(table(), speedup=1.8, method=Wanda(0.0))
        assert other.choose(layers, stats, Magnitude(0.0)) == own
        assert other.needs == {"gram", "norms"}
        assert LatencyBudget(table(), speedup=1.8).choose(layers, stats, Magnitude(0.0)) != own

    def test_layers_on_one_side_only(self) -> None:
        """What the table lacks stays dense; what is not pruned keeps its dense time."""
        us = table()
        layers = prunable_layers(network(), ignore="4")
        stats = statistics(layers)
        fewer = LatencyTable({fqn: us.us[fqn] for fqn in ("0", "4")})
        target = 0.5 * us.us["0"][DENSE] + us.us["4"][DENSE]
        chosen = LatencyBudget(fewer, target_us=target).choose(layers, stats, Magnitude(0.0))
        assert chosen["2"].sparsity == 0.0
        assert chosen["0"].us <= 0.5 * us.us["0"][DENSE]


@pytest.mark.parametrize("speedup", [1.5, 2.5])
def test_prune_(speedup: float) -> None:
    model = network()
    layers = prunable_layers(model)
    stats = statistics(layers)
    budget = LatencyBudget(table(), speedup=speedup)
    chosen = budget.choose(layers, stats, Magnitude(0.0))
    assert len({choice.pattern for choice in chosen.values()}) > 1
    report = prune_(model, Magnitude(budget), stats=stats)
    for row in report.layers:
        choice = chosen[row.fqn]
        # Blocks of 16 weights: the nearest count of whole ones.
        assert row.sparsity == pytest.approx(choice.sparsity, abs=8 / row.numel + 1e-12)
        assert row.error == pytest.approx(choice.error, rel=1e-6)
        if choice.pattern == Block(4, 4):
            weight = model.get_submodule(row.fqn).weight
            blocks = weight.reshape(row.shape[0] // 4, 4, row.shape[1] // 4, 4)
            kept = (blocks != 0).sum((1, 3))
            assert set(kept.flatten().tolist()) == {0, 16}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LatencyTable({"0": {}}), ValueError, r"us: expected a time of \(0.0, .* for '0', got none"),
        (
            lambda: LatencyTable({"0": {DENSE: 1.0, (0.5, Unstructured()): math.nan}}),
            ValueError,
            r"us: expected a positive time of \(0.5, .* for '0', got nan",
        ),
        (lambda: LatencyBudget({}, speedup=2), TypeError, "table: expected a LatencyTable, got dict"),
        (lambda: LatencyBudget(table()), ValueError, "target_us: expected either target_us or speedup"),
        (
            lambda: LatencyBudget(table(), target_us=1, speedup=2),
            ValueError,
            "target_us: expected either target_us or speedup, got target_us=1 and speedup=2",
        ),
        (lambda: LatencyBudget(table(), speedup=0), ValueError, "speedup: expected a positive number, got 0"),
        (
            lambda: LatencyBudget(table(), target_us=-1.0),
            ValueError,
            "target_us: expected a positive number, got -1.0",
        ),
    ],
)
def test_bad_arguments(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_model_of_other_layers() -> None:
    other = nn.Sequential(nn.Linear(4, 4))
    layers = prunable_layers(other)
    with pytest.raises(ValueError, match="target_us: expected at least"):
        LatencyBudget(table(), speedup=2.0).choose(layers, statistics(layers), Magnitude(0.0))
