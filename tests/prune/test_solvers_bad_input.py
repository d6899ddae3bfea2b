"""Solvers on arguments, statistics and masks that are wrong, few or singular."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from prune_helpers import SOLVERS
from torch import nn

from sparseinfer.prune import (
    ADMM,
    NM,
    Block,
    CalibrationStats,
    Reconstruct,
    SparseGPT,
    Wanda,
    calibrate,
    prune_,
)

METHODS = (*(solver(0.5) for solver in SOLVERS), Reconstruct(Wanda(0.5)))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16))


def inputs(tokens: int = 400, k: int = 32) -> torch.Tensor:
    return torch.randn(tokens, k, generator=torch.Generator().manual_seed(1))


def assert_refused(net: nn.Module, method, message: str, **how) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises((TypeError, ValueError), match=message):
        prune_(net, method, **how)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseGPT(1.0), r"sparsity: expected a number in \[0, 1\), got 1.0"),
        (lambda: ADMM("half"), "sparsity: expected a float, got str"),
        (lambda: ADMM(0.5, scope="global"), "scope: expected 'layer' or 'row', got 'global'"),
        (lambda: SparseGPT(0.5, damping=-1), "damping: expected a finite number of at least 0, got -1"),
        (lambda: SparseGPT(0.5, damping=float("nan")), "damping: expected a finite number"),
        (lambda: Reconstruct(Wanda(0.5), damping="a"), "damping: expected a float, got str"),
        (lambda: SparseGPT(0.5, block_size=0), "block_size: expected at least 1, got 0"),
        (lambda: SparseGPT(0.5, block_size=1.5), "block_size: expected an int, got float"),
        (lambda: SparseGPT(0.5, "row", reference_exact=True), "reference_exact: expected Unstructured"),
        (lambda: SparseGPT(0.5, pattern=Block(2, 2), reference_exact=True), "reference_exact: expected"),
        (lambda: SparseGPT(0.5, pattern=NM(2, 4)), "sparsity: expected None with NM"),
        (lambda: ADMM(0.5, iterations=0), "iterations: expected at least 1, got 0"),
        (lambda: ADMM(0.5, iterations=5), r"gradual: expected at most 5 \(iterations\), got"),
        (lambda: ADMM(0.5, refit=True), "refit: expected an int, got bool"),
        (lambda: Reconstruct(0.5), "mask: expected a method or masks by name, got float"),
        (lambda: Reconstruct(Wanda(0.5), iterations=0), "iterations: expected at least 1, got 0"),
    ],
)
def test_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_statistics_without_gram(method):
    net = model()
    stats = calibrate(net, [inputs()], gram=False)
    assert_refused(net, method, "stats: expected a Gram matrix of '0'", stats=stats)
    assert_refused(net, method, "stats: expected calibration statistics for")


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_gram_matrix_that_overflowed(method):
    net = model()
    found = calibrate(net, [inputs()])
    bad = dataclasses.replace(found["2"], gram=torch.full((1, 24, 24), float("inf")))
    stats = CalibrationStats({"0": found["0"], "2": bad})
    assert_refused(net, method, "stats: expected a finite Gram matrix of '2'", stats=stats)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_inputs_with_nan(method):
    x = inputs()
    x[3, 4] = float("nan")
    assert_refused(model(), method, "0: expected finite inputs, got 1 NaN", batches=[x])


def test_a_pattern_that_does_not_divide():
    method = Reconstruct(Wanda(pattern=NM(2, 5)))
    for each in (method, SparseGPT(0.5, pattern=Block(5, 4)), ADMM(pattern=NM(2, 5))):
        assert_refused(model(), each, r"0.weight: expected a multiple of", batches=[inputs()])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"0": torch.ones(24, 32, dtype=torch.bool)}, "mask: expected one for '2', got none"),
        ({"0": torch.ones(24, 32)}, "mask: expected bool of .* for '0', got torch.float32"),
        ({"0": torch.ones(32, 24, dtype=torch.bool)}, r"got torch.bool of \(32, 24\)"),
        ({"0": "all"}, "got str"),
    ],
)
def test_masks(masks, message):
    assert_refused(model(), Reconstruct(masks), message, batches=[inputs()])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_few_tokens_are_reported_and_damped(method):
    net = model()
    with pytest.warns(
        UserWarning, match="at least as many tokens as inputs, got 5 for 32 of '0' and .* 1 more"
    ) as told:
        report = prune_(net, method, batches=[inputs(5)])
    assert [warning.filename for warning in told] == [__file__]
    assert report.sparsity == 0.5
    assert all(torch.isfinite(p).all() for p in net.parameters())
    # Five tokens are met by far fewer weights than are left.
    assert report.mean_error < 0.05


def test_a_singular_hessian_is_damped_more_and_reported():
    net = nn.Linear(32, 24)
    x = inputs()
    x[:, 5] = x[:, 6]
    with pytest.warns(UserWarning, match=r"damping: expected 0 to make Gram matrices regular, damped '' by"):
        report = prune_(net, SparseGPT(0.5, damping=0.0), batches=[x])
    assert report.sparsity == 0.5
    assert report.mean_error < 0.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_inputs_that_are_always_zero_cost_nothing(solver):
    net, x = nn.Linear(32, 24), inputs()
    x[:, :16] = 0
    report = prune_(net, solver(0.5), batches=[x])
    assert report.sparsity == 0.5
    assert report.mean_error <= torch.finfo(torch.float32).eps ** 2
    assert not net.weight[:, :16].any()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_inputs_that_are_all_zero(method):
    net = nn.Linear(32, 24)
    report = prune_(net, method, batches=[torch.zeros(100, 32)])
    assert report.sparsity == 0.5
    assert torch.isfinite(net.weight).all()
