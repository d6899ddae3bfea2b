"""Sparsity spread over layers: exact totals, and the published allocations transcribed in plain numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from sparseinfer.prune import (
    ERK,
    OWL,
    Budget,
    CalibrationStats,
    Layer,
    LayerStats,
    Magnitude,
    prunable_layers,
    prune_,
)

METHOD = Magnitude(0.5)


def network() -> nn.Sequential:
    """Sizes that divide nothing evenly, a small layer that ERK leaves dense, a grouped convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 32, 3, groups=4),
        nn.Linear(97, 203),
        nn.Linear(203, 301),
        nn.Linear(301, 7),
    )


def blocks(count: int = 4) -> nn.ModuleDict:
    """Transformer blocks of two layers each, and a head outside of them."""
    torch.manual_seed(0)
    layers = [nn.ModuleDict({"up": nn.Linear(24, 40), "down": nn.Linear(40, 24)}) for _ in range(count)]
    return nn.ModuleDict({"layers": nn.ModuleList(layers), "head": nn.Linear(24, 50)})


def statistics(layers: Mapping[str, Layer], seed: int = 0) -> CalibrationStats:
    """Of inputs whose columns differ in size, more so from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for i, (fqn, layer) in enumerate(layers.items()):
        groups, _, k = layer.shape
        x = torch.randn(groups, 200, k, generator=generator, dtype=torch.float64)
        x *= torch.randn(k, generator=generator, dtype=torch.float64).mul(0.3 * i).exp()
        found[fqn] = LayerStats(200, x.sum(1), x.square().sum(1), (x.mT @ x).float())
    return CalibrationStats(found)


def pruned_counts(fractions: Mapping[str, float], layers: Mapping[str, Layer]) -> list[int]:
    return [round(fractions[fqn] * layer.weight.numel()) for fqn, layer in layers.items()]


def total(layers: Mapping[str, Layer]) -> int:
    return sum(layer.weight.numel() for layer in layers.values())


@pytest.mark.parametrize("budget", [ERK, OWL])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.9, 0.99, 0.9999])
def test_the_total_is_exact(budget: type[ERK] | type[OWL], sparsity: float) -> None:
    layers = prunable_layers(network())
    fractions = budget(sparsity).allocate(layers, statistics(layers), METHOD)
    assert list(fractions) == list(layers)
    assert sum(pruned_counts(fractions, layers)) == round(sparsity * total(layers))
    kept = [round((1 - fractions[fqn]) * layer.weight.numel()) for fqn, layer in layers.items()]
    assert min(kept) >= (1 if sum(kept) >= len(kept) else 0)
    assert all(0 <= fraction <= 1 for fraction in fractions.values())


@pytest.mark.parametrize("budget", [ERK(0.8), OWL(0.8)], ids=["ERK", "OWL"])
def test_prune_(budget: Budget) -> None:
    model = network()
    layers = prunable_layers(model)
    expected = budget.allocate(layers, statistics(layers), METHOD)
    report = prune_(model, Magnitude(budget), stats=statistics(layers))
    assert report.numel - report.nnz == round(0.8 * report.numel)
    assert {layer.fqn: layer.sparsity for layer in report.layers} == pytest.approx(expected, abs=1e-12)


def erk_densities(shapes: list[tuple[int, ...]], sparsity: float) -> list[float]:
    """The published loop: layers that would be more than dense become dense, the others are solved anew."""
    dense: set[int] = set()
    while True:
        kept = sum(np.prod(s) * (1 - sparsity) for i, s in enumerate(shapes) if i not in dense)
        kept -= sum(np.prod(s) * sparsity for i, s in enumerate(shapes) if i in dense)
        raw = {i: sum(s) / np.prod(s) for i, s in enumerate(shapes) if i not in dense}
        scale = kept / sum(raw[i] * np.prod(shapes[i]) for i in raw)
        over = [i for i in raw if raw[i] * scale > 1]
        if not over:
            return [1.0 if i in dense else float(raw[i] * scale) for i in range(len(shapes))]
        dense |= {i for i in over if raw[i] == max(raw.values())}


class TestERK:
    @pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9, 0.98])
    def test_equals_the_published_loop(self, sparsity: float) -> None:
        layers = prunable_layers(network())
        fractions = ERK(sparsity).allocate(layers, None, METHOD)
        densities = erk_densities([tuple(layer.weight.shape) for layer in layers.values()], sparsity)
        for layer, density in zip(layers.values(), densities, strict=True):
            # Counts are rounded to whole weights.
            assert abs((1 - fractions[layer.fqn] - density) * layer.weight.numel()) <= 1
        if sparsity <= 0.9:
            assert 1.0 in densities

    def test_no_layers(self) -> None:
        assert ERK(0.5).allocate({}, None, METHOD) == {}


def owl_densities(layers: list[list[np.ndarray]], sparsity: float, m: float, lam: float) -> np.ndarray:
    """As published: outlier ratios of blocks, scaled to a range of 2·lam about the mean density."""
    ratios = []
    for block in layers:
        scores = np.concatenate([each.ravel() for each in block])
        ratios.append(100 * (scores > scores.mean() * m).sum() / scores.size)
    ratio = np.array(ratios)
    ratio = (ratio - ratio.min()) * (1 / (ratio.max() - ratio.min()) * lam * 2)
    return ratio - ratio.mean() + (1 - sparsity)


class TestOWL:
    def scores(self, layer: Layer, stats: CalibrationStats) -> np.ndarray:
        weight = layer.weight.detach().double().numpy()
        return np.abs(weight) * np.sqrt(stats[layer.fqn].sq.numpy())

    @pytest.mark.parametrize(("m", "lam"), [(5.0, 0.08), (3.0, 0.2)])
    def test_blocks(self, m: float, lam: float) -> None:
        """Blocks of one size: then the mean over blocks is that over weights."""
        layers = prunable_layers(blocks(), ignore="head")
        stats = statistics(layers)
        fractions = OWL(0.6, m=m, lam=lam).allocate(layers, stats, METHOD)
        names = [[f"layers.{i}.up", f"layers.{i}.down"] for i in range(4)]
        scores = [[self.scores(layers[fqn], stats) for fqn in block] for block in names]
        for block, density in zip(names, owl_densities(scores, 0.6, m, lam), strict=True):
            for fqn in block:
                assert abs((1 - fractions[fqn] - density) * layers[fqn].weight.numel()) <= 1
        assert max(fractions.values()) - min(fractions.values()) == pytest.approx(2 * lam, abs=2e-3)

    def test_layers_outside_of_blocks_are_by_themselves(self) -> None:
        layers = prunable_layers(blocks())
        stats = statistics(layers)
        together = OWL(0.6).allocate(layers, stats, METHOD)
        apart = OWL(0.6, per="layer").allocate(layers, stats, METHOD)
        for i in range(4):
            up, down = f"layers.{i}.up", f"layers.{i}.down"
            assert together[up] == pytest.approx(together[down], abs=2e-3)
            assert abs(together["head"] - together[up]) > 0.01
        assert abs(apart["layers.3.up"] - apart["layers.3.down"]) > 0.005

    def test_a_single_block_is_uniform(self) -> None:
        layers = prunable_layers(blocks(1), ignore="head")
        fractions = OWL(0.6).allocate(layers, statistics(layers), METHOD)
        assert list(fractions.values()) == pytest.approx([0.6, 0.6], abs=1e-3)

    def test_needs_statistics(self) -> None:
        with pytest.raises(ValueError, match="stats: expected"):
            prune_(blocks(), Magnitude(OWL(0.5)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ERK(1.0), ValueError, r"sparsity: expected a number in \[0, 1\), got 1.0"),
        (lambda: ERK("0.5"), TypeError, "sparsity: expected a float, got str"),
        (lambda: OWL(-0.1), ValueError, r"sparsity: expected a number in \[0, 1\)"),
        (lambda: OWL(0.5, m=0), ValueError, "m: expected a positive number, got 0"),
        (lambda: OWL(0.5, lam=float("nan")), ValueError, "lam: expected a positive number, got nan"),
        (lambda: OWL(0.5, per="model"), ValueError, "per: expected one of .*, got 'model'"),
        (lambda: Magnitude(ERK(0.5), scope="global"), ValueError, "scope: expected 'layer' or 'row', got"),
    ],
)
def test_bad_arguments(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
