"""Criteria against numpy transcriptions of the published formulas, on every kind of layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generators import values
from prune_helpers import KINDS, layer_of_kind, linears, transposed
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparseinfer.prune import (
    RIA,
    Criterion,
    DiagonalHessian,
    Gradient,
    Magnitude,
    Random,
    Taylor,
    Wanda,
    calibrate,
    prunable_layers,
    prune_,
    registry,
)


def lowest_pruned(scores: np.ndarray, sparsity: float, scope: str) -> np.ndarray:
    """Bool mask [groups, n, k]: sort each row, or everything, and drop the first round(sparsity * count)."""
    rows = scores.reshape(-1, scores.shape[-1]) if scope == "row" else scores.reshape(1, -1)
    kept = np.ones(rows.shape, bool)
    for row, mask in zip(rows, kept, strict=True):
        mask[np.argsort(row, kind="stable")[: round(sparsity * row.size)]] = False
    return kept.reshape(scores.shape)


def wanda(w, x, grad):
    return np.abs(w) * np.sqrt((x**2).sum(1))[:, None, :]


def ria(w, x, grad):
    size = np.abs(w)
    relative = size / size.sum(2, keepdims=True) + size / size.sum(1, keepdims=True)
    return relative * np.sqrt((x**2).sum(1))[:, None, :] ** 0.5


def diagonal_hessian(w, x, grad):
    hessian = np.einsum("gti,gtj->gij", x, x)
    return w**2 * np.einsum("gii->gi", hessian)[:, None, :]


CRITERIA = {
    Magnitude: lambda w, x, grad: np.abs(w),
    Wanda: wanda,
    RIA: ria,
    DiagonalHessian: diagonal_hessian,
    Gradient: lambda w, x, grad: np.abs(grad),
    Taylor: lambda w, x, grad: np.abs(w * grad),
}


def test_every_criterion_that_is_offered_has_its_formula_here():
    offered = {method for method in registry.methods().values() if issubclass(method, Criterion)}
    assert offered == {*CRITERIA, Random}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_formula(kind, criterion):
    module, x = layer_of_kind(kind)
    layer = prunable_layers(module)[""]
    w, inputs = layer.matrix().clone(), layer.unfold(x)
    weight = module.weight.detach().clone().requires_grad_()
    (torch.func.functional_call(module, {"weight": weight}, x) ** 3).sum().backward()
    scores = CRITERIA[criterion](w.numpy(), inputs.numpy(), layer.matrix(weight.grad).numpy())

    stats = calibrate(module, [x], loss_fn=lambda y, batch: (y**3).sum())
    method = criterion(0.4)
    prune_(module, method, stats=stats)
    kept = torch.from_numpy(lowest_pruned(scores, 0.4, method.scope))
    assert torch.equal(layer.matrix(), torch.where(kept, w, 0))


def test_wanda_of_a_transposed_linear_compares_within_each_output():
    module = transposed(6, 8)
    w, x = module.weight.detach().clone(), values(5, 8, seed=1)
    prune_(module, Wanda(0.5), batches=[x])
    scores = wanda(w.T.double().numpy()[None], x.double().numpy()[None], None)
    kept = torch.from_numpy(lowest_pruned(scores, 0.5, "row"))[0].T
    assert torch.equal(module.weight, torch.where(kept, w, 0))


def test_ria_exponent_and_rows_of_zeros():
    module = linears((4, 6), dtype=torch.float64)[0]
    module.weight.data[1] = 0
    module.weight.data[:, 2] = 0
    size = module.weight.detach().abs().numpy()
    prune_(module, RIA(0.5, exponent=0), batches=[values(5, 6, seed=1, dtype=torch.float64)])
    with np.errstate(invalid="ignore"):
        relative = np.nan_to_num(size / size.sum(1, keepdims=True)) + np.nan_to_num(size / size.sum(0))
    kept = lowest_pruned(relative[None], 0.5, "row")[0]
    np.testing.assert_array_equal(module.weight.detach().numpy() != 0, kept & (size > 0))


def test_random_is_torchs_random_with_the_same_scores(monkeypatch):
    ours, theirs = linears((7, 13), (64, 48)), linears((7, 13), (64, 48))
    method = Random(0.3, seed=5)
    # torch prunes the largest numbers that it draws.
    drawn = iter([1 - method.scores(layer, None)[0] for layer in prunable_layers(ours).values()])
    monkeypatch.setattr(torch, "rand_like", lambda mask: next(drawn))
    for layer in theirs:
        torch_prune.random_unstructured(layer, "weight", amount=0.3)
    prune_(ours, method)
    for mine, layer in zip(ours, theirs, strict=True):
        assert torch.equal(mine.weight, layer.weight)


def test_random_depends_on_seed_and_name_only():
    alone, both = linears((16, 16)), linears((16, 16), (16, 16))
    prune_(alone, Random(0.5, seed=1))
    prune_(both, Random(0.5, seed=1))
    assert torch.equal(alone[0].weight, both[0].weight)
    assert not torch.equal(both[0].weight != 0, both[1].weight != 0)
    again = linears((16, 16))
    prune_(again, Random(0.5, seed=2))
    assert not torch.equal(again[0].weight, alone[0].weight)


@pytest.mark.parametrize("method", [Wanda(0.5), RIA(0.5), DiagonalHessian(0.5), Gradient(0.5), Taylor(0.5)])
def test_a_method_without_its_statistics(method):
    net = nn.Linear(4, 4)
    before = net.weight.detach().clone()
    name = type(method).__name__
    with pytest.raises(
        ValueError, match=rf"stats: expected calibration statistics for {name}, got None \(pass"
    ):
        prune_(net, method)
    if "gradients" in method.needs:
        with pytest.raises(
            ValueError, match=r"expected gradients of '', got None \(calibrate with a loss_fn\)"
        ):
            prune_(net, method, batches=[torch.ones(2, 4)])
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("exponent", [-1, float("nan"), float("inf")])
def test_bad_exponent(exponent):
    with pytest.raises(ValueError, match="exponent: expected a finite number of at least 0, got"):
        RIA(0.5, exponent=exponent)
