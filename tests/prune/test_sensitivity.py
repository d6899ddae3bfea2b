"""The sensitivity scan: of all mixes of candidates that of least predicted cost, found by trying all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_budgets import statistics
from torch import nn

from sparseinfer.prune import (
    Layer,
    Magnitude,
    Sensitivity,
    Wanda,
    prunable_layers,
    prune_,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))


def error_of(layer: Layer, stats, fraction: float) -> float:
    """Of magnitude pruning by layer, from the inputs' Gram matrix, in numpy."""
    weight = layer.weight.detach().double().numpy()
    order = np.argsort(np.abs(weight), axis=None, kind="stable")
    pruned = weight.copy()
    pruned.reshape(-1)[order[: round(fraction * weight.size)]] = 0
    gram = stats[layer.fqn].gram[0].double().numpy()

    def norm(w: np.ndarray) -> float:
        return float(np.einsum("nk,kl,nl->", w, gram, w))

    return norm(weight - pruned) / norm(weight)


class TestSensitivity:
    CANDIDATES = (0.25, 0.5, 0.75)

    @pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.7, 0.95])
    def test_the_total_is_exact(self, sparsity: float) -> None:
        model = network()
        stats = statistics(prunable_layers(model))
        report = prune_(model, Magnitude(Sensitivity(sparsity)), stats=stats)
        assert report.numel - report.nnz == round(sparsity * report.numel)

    def test_no_mix_of_candidates_costs_less(self) -> None:
        """Against every combination of candidates that prunes as many weights or more."""
        layers = prunable_layers(network())
        stats = statistics(layers)
        budget = Sensitivity(0.5, candidates=self.CANDIDATES)
        chosen = budget.allocate(layers, stats, Magnitude(0.0))
        costs = {
            fqn: [error_of(layer, stats, s) for s in (0.0, *self.CANDIDATES)] for fqn, layer in layers.items()
        }
        sizes = [layer.weight.numel() for layer in layers.values()]
        best = math.inf
        for mix in itertools.product(range(4), repeat=3):
            pruned = sum(n * (0.0, *self.CANDIDATES)[i] for n, i in zip(sizes, mix, strict=True))
            if pruned >= 0.5 * sum(sizes):
                best = min(best, sum(costs[fqn][i] for fqn, i in zip(layers, mix, strict=True)))
        # Errors between candidates are interpolated, which is what the budget minimises.
        got = sum(float(np.interp(chosen[fqn], (0.0, *self.CANDIDATES), costs[fqn])) for fqn in layers)
        assert got <= best * (1 + 1e-6)
        assert max(chosen.values()) - min(chosen.values()) > 0.05

    def test_evaluate(self) -> None:
        """A loss that minds one layer alone: that one is pruned last, and the model comes back as it was."""
        model = network()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        calls = []

        def loss() -> float:
            calls.append(1)
            return float((model[0].weight - before["0.weight"]).square().sum()) + 1.0

        layers = prunable_layers(model)
        with torch.no_grad():
            chosen = Sensitivity(0.5, evaluate=loss).allocate(layers, None, Magnitude(0.0))
        assert len(calls) == 1 + 3 * 8
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert chosen == {"0": 0.0, "2": 487 / 512, "4": (576 - 487) / 128}

    def test_after_a_failed_evaluation_the_model_is_as_it_was(self) -> None:
        model = network()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        values = iter([1.0, 2.0, math.nan])
        for evaluate, error in ((lambda: next(values), ValueError), (lambda: 1 / 0, ZeroDivisionError)):
            with pytest.raises(error):
                prune_(model, Magnitude(Sensitivity(0.5, evaluate=evaluate)))
            assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    def test_scans_with_another_method(self) -> None:
        layers = prunable_layers(network())
        stats = statistics(layers)
        own = Sensitivity(0.5).allocate(layers, stats, Wanda(0.0))
        other = Sensitivity(0.5, method=Wanda(0.0)).allocate(layers, stats, Magnitude(0.0))
        assert own == other != Sensitivity(0.5).allocate(layers, stats, Magnitude(0.0))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Sensitivity(0.5, candidates=()), "expected ascending fractions above 0"),
            (
                lambda: Sensitivity(0.1, candidates=(0.5, 0.4)),
                "expected ascending fractions above 0",
            ),
            (
                lambda: Sensitivity(0.1, candidates=(0.0, 0.4)),
                "expected ascending fractions above 0",
            ),
            (lambda: Sensitivity(0.1, candidates=(0.5, 1.0)), r"expected a number in \[0, 1\)"),
            (
                lambda: Sensitivity(0.96),
                "expected at least the sparsity 0.96 as the last, got 0.95",
            ),
        ],
    )
    def test_bad_arguments(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises(ValueError, match=f"candidates: {message}"):
            make()
