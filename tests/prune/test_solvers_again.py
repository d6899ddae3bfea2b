"""Pruning a second time: a zero stays a zero, and nothing is made up for without need."""

from __future__ import annotations

import copy

import pytest
import torch
from generators import values
from prune_helpers import SOLVERS
from torch import nn

from sparseinfer.prune import (
    ADMM,
    NM,
    RIA,
    Block,
    CalibrationStats,
    Column,
    DiagonalHessian,
    Magnitude,
    Method,
    Reconstruct,
    Row,
    SparseGPT,
    SparseMethod,
    Wanda,
    calibrate,
    masks_of,
    prune_,
)

N, K = 48, 64
FIRST = {
    "single": Magnitude(0.9),
    "blocks": Magnitude(0.8, pattern=Block(4, 4)),
    "columns": Magnitude(0.75, pattern=Column()),
    "uneven": Magnitude(0.5, scope="global", pattern=Row()),
}
AGAIN: list[Method] = [
    SparseGPT(0.5),
    SparseGPT(0.5, scope="row"),
    SparseGPT(0.5, block_size=16),
    SparseGPT(0.5, reference_exact=True),
    SparseGPT(0.5, pattern=Block(4, 4)),
    SparseGPT(0.5, pattern=Column()),
    SparseGPT(0.25, pattern=Row()),
    SparseGPT(pattern=NM(2, 4)),
    SparseGPT(0.97),
    ADMM(0.5),
    ADMM(0.5, scope="row"),
    ADMM(0.5, pattern=Block(4, 4)),
    ADMM(0.5, pattern=Column()),
    ADMM(pattern=NM(2, 4)),
    ADMM(0.97),
    Reconstruct(Magnitude(0.5)),
    Reconstruct(SparseGPT(0.5)),
    Reconstruct(Wanda(0.95)),
    Reconstruct({"0": torch.ones(N, K, dtype=torch.bool)}),
    Magnitude(0.5),
    Wanda(0.5),
    RIA(0.5),
    DiagonalHessian(0.5),
]


def layer() -> tuple[nn.Sequential, CalibrationStats]:
    """Inputs that depend on each other, so that any weight can make up for any other."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(K, N))
    mixed = values(K, K, seed=1) / K**0.5 + torch.eye(K)
    return net, calibrate(net, [values(512, K, seed=2) @ mixed])


@pytest.mark.parametrize("held", [True, False], ids=["held", "plain"])
@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("again", AGAIN, ids=lambda method: str(method)[:60])
def test_a_zero_stays_a_zero(again: Method, first: Method, held: bool) -> None:
    net, stats = layer()
    prune_(net, first, keep_masks=held)
    zeros = net[0].weight == 0
    assert 0 < int(zeros.sum()) < zeros.numel()
    prune_(net, again, stats=stats)
    assert not net[0].weight[zeros].any()
    # The mask is as sparse as it was asked to be, so training may fill what it keeps.
    mask = masks_of(net)["0"]
    assert not net[0].weight[~mask].any()
    if isinstance(again, (SparseGPT, ADMM)) and again.pattern != NM(2, 4):
        exact = isinstance(again, ADMM) or not again.reference_exact
        assert not exact or int((~mask).sum()) == round(again.sparsity * N * K)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "again", [SparseGPT(0.5), ADMM(0.5), ADMM(0.8), Reconstruct(Magnitude(0.5)), Wanda(0.5)], ids=str
)
def test_pruning_less_than_before_changes_no_bit(again: Method, dtype: torch.dtype) -> None:
    net, stats = layer()
    net.to(dtype)
    prune_(net, Magnitude(0.9, scope="row"))
    before = net[0].weight.detach().clone()
    report = prune_(net, again, stats=stats)
    assert torch.equal(net[0].weight, before)
    assert report.sparsity == pytest.approx(0.9, abs=0.01)
    assert report.layers[0].error == 0


@pytest.mark.parametrize("solver", [SparseGPT(0.7), ADMM(0.7), SparseGPT(0.7, pattern=Block(4, 4))], ids=str)
def test_the_same_solver_again_changes_no_bit(solver: Method) -> None:
    net, stats = layer()
    prune_(net, solver, stats=stats)
    before = net[0].weight.detach().clone()
    prune_(net, solver, stats=stats)
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("make", SOLVERS)
def test_pruning_on_is_still_better_than_without_a_solver(make: type[SparseMethod]) -> None:
    """From half to more: what stays makes up for what goes, though zeros do not help."""
    net, stats = layer()
    prune_(net, Magnitude(0.5))
    errors = [
        prune_(copy.deepcopy(net), method, stats=stats).layers[0].error
        for method in (make(0.8), Reconstruct(Magnitude(0.8)), Magnitude(0.8))
    ]
    assert errors[0] < errors[2]
    assert errors[1] < errors[2]


def test_a_solution_is_the_best_of_those_with_these_zeros() -> None:
    """Against least squares on the columns that a row may fill, in float64."""
    net, stats = layer()
    net.double()
    prune_(net, Magnitude(0.5), keep_masks=False)
    before = net[0].weight.detach().clone()
    prune_(net, Reconstruct(Magnitude(0.75), damping=0.0, iterations=200), stats=stats)
    gram = stats["0"].gram[0].double()
    for old, new in zip(before[:8], net[0].weight[:8], strict=True):
        free = new.nonzero()[:, 0]
        assert old[free].all()
        expected = torch.linalg.solve(gram[free][:, free], (gram @ old)[free])
        # Conjugate gradients end at 1e-7 of the first residual.
        torch.testing.assert_close(new[free].detach(), expected, rtol=1e-4, atol=1e-5)
