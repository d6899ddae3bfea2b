"""SparseGPT, ADMM and reconstruction: against plain transcriptions, least squares and each other."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from prune_helpers import SOLVERS
from torch import nn

from sparseinfer.prune import (
    ADMM,
    ERK,
    NM,
    Block,
    Column,
    Magnitude,
    Reconstruct,
    Row,
    SparseGPT,
    Wanda,
    calibrate,
    prunable_layers,
    prune_,
)

# SparseGPT with blocks that are shorter than its layers, and the others.
SOLVERS_OF_SEVERAL_BLOCKS = [
    partial(SparseGPT, block_size=32),
    *(solver for solver in SOLVERS if solver is not SparseGPT),
]


def inputs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Correlated along dimension 1, and of uneven size: what makes solvers differ from criteria."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    mix = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64) / shape[1] ** 0.5
    mix += 0.5 * torch.eye(shape[1], dtype=torch.float64)
    return torch.einsum("bc...,cd->bd...", x, mix * torch.rand(shape[1], generator=generator).exp()).to(dtype)


def linear(n: int = 48, k: int = 80, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(n + k)
    return nn.Linear(k, n, dtype=dtype)


def transposed(n: int = 48, k: int = 80) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(3)
    layer = Conv1D(n, k).double()
    nn.init.normal_(layer.weight)
    return layer


def grouped_conv() -> nn.Conv2d:
    torch.manual_seed(5)
    return nn.Conv2d(12, 18, (3, 2), groups=3, padding=1, stride=2, dtype=torch.float64)


def conv1d() -> nn.Conv1d:
    torch.manual_seed(7)
    return nn.Conv1d(10, 16, 5, dtype=torch.float64)


CASES = {
    "linear": (linear, (300, 80)),
    "transposed": (transposed, (300, 80)),
    "conv2d": (grouped_conv, (6, 12, 17, 15)),
    "conv1d": (conv1d, (5, 10, 160)),
}


def numpy_gram(layer: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    """Of each group, from windows cut out one by one."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return [x.numpy().T @ x.numpy()]
    if isinstance(layer, nn.Conv1d):
        x = x[:, :, None]
        kernel, stride, padding = (1, *layer.kernel_size), (1, *layer.stride), (0, *layer.padding)
    else:
        kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
    image = np.pad(x.numpy(), ((0, 0), (0, 0), *((p, p) for p in padding)))
    channels = image.shape[1] // layer.groups
    grams = [0.0] * layer.groups
    for i in range(0, image.shape[2] - kernel[0] + 1, stride[0]):
        for j in range(0, image.shape[3] - kernel[1] + 1, stride[1]):
            for g in range(layer.groups):
                window = image[:, g * channels : (g + 1) * channels, i : i + kernel[0], j : j + kernel[1]]
                rows = window.reshape(len(image), -1)
                grams[g] = grams[g] + rows.T @ rows
    return grams


def numpy_matrices(layer: nn.Module, weight: torch.Tensor) -> list[np.ndarray]:
    """The [n, k] matrix of each group."""
    array = weight.detach().numpy()
    if type(layer).__name__ == "Conv1D":
        return [array.T.copy()]
    groups = getattr(layer, "groups", 1)
    return [part.reshape(len(part), -1).copy() for part in np.split(array, groups)]


def numpy_sparsegpt(
    w: np.ndarray, gram: np.ndarray, sparsity: float, n_of_m: tuple[int, int] | None = None, size: int = 128
) -> np.ndarray:
    """The published algorithm, written down from its description, one matrix, in float64."""
    w, h = w.copy(), gram.copy()
    h[np.diag_indices_from(h)] += 0.01 * np.diag(h).mean()
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    for first in range(0, w.shape[1], size):
        last = min(first + size, w.shape[1])
        if n_of_m is None:
            scores = w[:, first:last] ** 2 / np.diag(u)[first:last] ** 2
            pruned = scores <= np.sort(scores.ravel())[int(scores.size * sparsity)]
        else:
            pruned = np.zeros((len(w), last - first), bool)
        errors = np.zeros((len(w), last - first))
        for i in range(first, last):
            if n_of_m is not None and (i - first) % n_of_m[1] == 0:
                n, m = n_of_m
                scores = w[:, i : i + m] ** 2 / np.diag(u)[i : i + m] ** 2
                for row, order in enumerate(np.argsort(scores, axis=1)):
                    pruned[row, i - first + order[: m - n]] = True
            lost = np.where(pruned[:, i - first], w[:, i], 0.0)
            errors[:, i - first] = lost / u[i, i]
            w[:, i:last] -= np.outer(errors[:, i - first], u[i, i:last])
            w[pruned[:, i - first], i] = 0.0
        w[:, last:] -= errors @ u[first:last, last:]
    return w


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block_size", [16, 128])
def test_sparsegpt_is_the_published_algorithm(case, block_size):
    make, shape = CASES[case]
    layer, x = make(), inputs(*shape)
    expected = [
        numpy_sparsegpt(w, gram, 0.6, size=block_size)
        for w, gram in zip(numpy_matrices(layer, layer.weight), numpy_gram(layer, x), strict=True)
    ]
    prune_(layer, SparseGPT(0.6, block_size=block_size, reference_exact=True), batches=[x])
    for found, wanted in zip(numpy_matrices(layer, layer.weight), expected, strict=True):
        np.testing.assert_array_equal(found != 0, wanted != 0)
        # A few thousand float64 operations on a Hessian whose condition damping bounds by 100·k.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


def test_sparsegpt_in_float32_is_within_1e_4_of_the_published_algorithm():
    layer, x = linear(96, 160, torch.float32), inputs(900, 160, dtype=torch.float32)
    (w,), (gram,) = numpy_matrices(layer, layer.weight.double()), numpy_gram(layer, x.double())
    expected = numpy_sparsegpt(w, gram, 0.5)
    prune_(layer, SparseGPT(0.5, reference_exact=True), batches=[x])
    found = layer.weight.detach().double().numpy()
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_sparsegpt_n_of_m_is_the_published_algorithm():
    layer, x = linear(), inputs(300, 80)
    (w,), (gram,) = numpy_matrices(layer, layer.weight), numpy_gram(layer, x)
    expected = numpy_sparsegpt(w, gram, 0.0, n_of_m=(2, 4), size=32)
    prune_(layer, SparseGPT(pattern=NM(2, 4), block_size=32, reference_exact=True), batches=[x])
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_reconstruction_is_least_squares_on_every_row(case):
    make, shape = CASES[case]
    layer, x = make(), inputs(*shape)
    (prunable,) = prunable_layers(layer).values()
    before, tokens = prunable.matrix().clone(), prunable.unfold(x)
    prune_(layer, Reconstruct(Wanda(0.5), damping=0.0, iterations=300), batches=[x])
    after = prunable.matrix()
    for group in range(prunable.groups):
        for old, new in zip(before[group], after[group], strict=True):
            kept = (new != 0).numpy()
            a, b = tokens[group].numpy(), (tokens[group] @ old).numpy()
            best = np.linalg.lstsq(a[:, kept], b, rcond=None)[0]
            np.testing.assert_allclose(new.numpy()[kept], best, rtol=0, atol=1e-6 * np.abs(best).max())


@pytest.mark.parametrize("damping", [0.0, 0.01, 100.0])
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_reconstruction_increases_the_error_of_no_row(damping, iterations):
    layer, x = linear(dtype=torch.float32), inputs(300, 80, dtype=torch.float32)
    dense = layer.weight.detach().clone()
    start = SparseGPT(0.7)
    method = Reconstruct(start, damping=damping, iterations=iterations)
    errors = []
    for each in (start, method):
        with torch.no_grad():
            layer.weight.copy_(dense)
        prune_(layer, each, batches=[x], keep_masks=False)
        errors.append((x.double() @ (dense - layer.weight.detach()).double().T).square().sum(0))
    # float32 decides which of two nearly equal errors is less: 2·k·eps of the larger.
    assert (errors[1] <= errors[0] * (1 + 2 * 80 * torch.finfo(torch.float32).eps)).all()
    if damping < 1:
        assert errors[1].sum() < 0.99 * errors[0].sum()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_each_better_method_has_a_smaller_error(case, sparsity):
    make, shape = CASES[case]
    x = inputs(*shape)
    errors = []
    # Several blocks for each layer, as in layers of a real size.
    sparsegpt = SparseGPT(sparsity, block_size=16)
    for method in (Magnitude(sparsity), Wanda(sparsity), sparsegpt, ADMM(sparsity)):
        layer = make()
        errors.append(prune_(layer, method, stats=calibrate(layer, [x])).mean_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.95 * errors[2] < errors[1]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scope", ["layer", "row"])
def test_counts_are_exact(solver, case, scope):
    make, shape = CASES[case]
    layer = make()
    prune_(layer, solver(0.37, scope), batches=[inputs(*shape)])
    (prunable,) = prunable_layers(layer).values()
    zeros = prunable.matrix() == 0
    if scope == "layer":
        assert int(zeros.sum()) == round(0.37 * zeros.numel())
    else:
        assert set(zeros.sum(-1).flatten().tolist()) == {round(0.37 * zeros.shape[2])}


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_to_prune_changes_no_bit(solver):
    x = inputs(300, 80)
    net = nn.Sequential(linear(48, 80), linear(40, 48))
    before = copy.deepcopy(net)
    prune_(net, solver({"0": 0.0, "1": 0.5}), batches=[x])
    assert torch.equal(net[0].weight, before[0].weight)
    assert int(net[1].weight.count_nonzero()) == 40 * 48 // 2


@pytest.mark.parametrize("solver", SOLVERS_OF_SEVERAL_BLOCKS)
@pytest.mark.parametrize(
    ("pattern", "unit"), [(Block(4, 8), (4, 8)), (Block(1, 4), (1, 4)), (Row(), (1, 80)), (Column(), (48, 1))]
)
def test_patterns_hold_and_beat_magnitude(solver, pattern, unit):
    x, (r, c) = inputs(300, 80), unit
    layer, simple = linear(), linear()
    report = prune_(layer, solver(0.5, pattern=pattern), batches=[x])
    units = layer.weight.detach().reshape(48 // r, r, 80 // c, c).transpose(1, 2).flatten(2)
    zeros = (units == 0).all(-1)
    assert torch.equal(zeros, (units == 0).any(-1))
    assert int(zeros.sum()) == round(0.5 * zeros.numel())
    magnitude = prune_(simple, Magnitude(0.5, pattern=pattern), batches=[x])
    assert report.mean_error < magnitude.mean_error


@pytest.mark.parametrize("solver", SOLVERS)
def test_columns_of_a_convolution_are_channels_with_their_kernel(solver):
    layer = grouped_conv()
    prune_(layer, solver(0.5, pattern=Column()), batches=[inputs(6, 12, 17, 15)])
    zeros = (layer.weight == 0).unflatten(0, (3, 6)).transpose(1, 2).flatten(2)
    assert torch.equal(zeros.all(-1), zeros.any(-1))
    assert int(zeros.all(-1).sum()) == 6


@pytest.mark.parametrize("solver", SOLVERS)
def test_n_of_m_holds(solver):
    layer, x = linear(), inputs(300, 80)
    prune_(layer, solver(pattern=NM(3, 5)), batches=[x])
    assert set((layer.weight != 0).reshape(-1, 5).sum(1).tolist()) == {3}


def test_reconstruction_of_given_masks():
    layer, x = linear(), inputs(300, 80)
    dense = layer.weight.detach().clone()
    mask = torch.rand(48, 80, generator=torch.Generator().manual_seed(0)) > 0.5
    report = prune_(layer, Reconstruct({"": mask}), batches=[x])
    assert torch.equal(layer.weight != 0, mask)
    masked = (x @ (dense * ~mask).T).square().sum() / (x @ dense.T).square().sum()
    assert report.mean_error < 0.5 * masked


def test_reconstruction_of_a_method_with_a_budget():
    x = inputs(300, 80)
    net = nn.Sequential(linear(48, 80), linear(40, 48))
    plain = copy.deepcopy(net)
    report = prune_(net, Reconstruct(Wanda(ERK(0.6))), batches=[x])
    start = prune_(plain, Wanda(ERK(0.6)), batches=[x])
    assert report.layers[0].sparsity != report.layers[1].sparsity
    for refitted, layer in zip(report.layers, start.layers, strict=True):
        assert (refitted.nnz, refitted.fqn) == (layer.nnz, layer.fqn)
        assert refitted.error < layer.error
