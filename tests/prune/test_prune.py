"""Pruning against torch.nn.utils.prune and numpy, and the bookkeeping around it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from generators import noncontiguous, values
from prune_helpers import linear, linears
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparseinfer.prune import Magnitude, prune_
from sparseinfer.prune.methods.threshold import keep_largest

SPARSITIES = (0.0, 0.01, 0.5, 0.77, 0.9, 0.999)
SHAPES = ((7, 13), (1, 1), (64, 48), (3, 1))
SCOPES = ("layer", "row", "global")


def model(**how) -> nn.Sequential:
    return linears(*SHAPES, **how)


def assert_pruned_to(layer: nn.Linear, before: torch.Tensor, kept: torch.Tensor) -> None:
    assert torch.equal(layer.weight, torch.where(kept.bool(), before, 0.0))


def numpy_keep(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """The definition: sort by (score, index), drop the first round(sparsity * count) of each row."""
    kept = np.ones(scores.shape, bool)
    drop = np.argsort(scores, axis=1, kind="stable")[:, : round(sparsity * scores.shape[1])]
    np.put_along_axis(kept, drop, False, axis=1)
    return kept


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_layer_scope_is_torchs_l1_unstructured(sparsity):
    ours, theirs = model(), model()
    report = prune_(ours, Magnitude(sparsity))
    for i, layer in enumerate(theirs):
        torch_prune.l1_unstructured(layer, "weight", amount=float(sparsity))
        assert_pruned_to(ours[i], layer.weight_orig, layer.weight_mask)
        assert report.layers[i].nnz == int(layer.weight_mask.sum())


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_global_scope_is_torchs_global_unstructured(sparsity):
    ours, theirs = model(), model()
    report = prune_(ours, Magnitude(sparsity, scope="global"))
    weights = [(layer, "weight") for layer in theirs]
    torch_prune.global_unstructured(weights, torch_prune.L1Unstructured, amount=float(sparsity))
    for mine, layer in zip(ours, theirs, strict=True):
        assert_pruned_to(mine, layer.weight_orig, layer.weight_mask)
    total = sum(n * k for n, k in SHAPES)
    assert report.nnz == total - round(sparsity * total)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_row_scope_is_torchs_l1_on_each_row(sparsity):
    ours, before = model(), model()
    prune_(ours, Magnitude(sparsity, scope="row"))
    for mine, layer in zip(ours, before, strict=True):
        method = torch_prune.L1Unstructured(amount=float(sparsity))
        kept = torch.stack([method.compute_mask(row, torch.ones_like(row)) for row in layer.weight.detach()])
        assert_pruned_to(mine, layer.weight, kept)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("shape", [(1, 1000), (9, 40), (1, 1), (5, 0), (0, 5), (0, 0)], ids=str)
def test_ties_go_by_index(shape, sparsity):
    scores = values(*shape, integer=True).abs()
    kept = keep_largest(scores, sparsity).numpy()
    np.testing.assert_array_equal(kept, numpy_keep(scores.numpy(), sparsity))


def test_all_equal_weights_lose_the_first_ones():
    layer = linear(2, 4, weight=torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]]))
    prune_(layer, Magnitude(0.75))
    assert layer.weight.tolist() == [[0.0] * 4, [0.0, 0.0, 1.0, 1.0]]


def test_counts_above_2_to_the_24_are_exact():
    # float32 counts neither 2**24 + 1 nor the index behind it
    count = 2**24 + 3
    scores = torch.ones(1, count)
    scores[0, -1] = 2.0
    kept = keep_largest(scores, 1 - 2 / count)
    assert round((1 - 2 / count) * count) == count - 2
    assert kept.nonzero()[:, 1].tolist() == [count - 2, count - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_every_floating_dtype(scope, dtype):
    net, before = model(dtype=dtype), model(dtype=dtype)
    prune_(net, Magnitude(0.6, scope))
    flat = [layer.weight.detach().double().abs().numpy() for layer in before]
    if scope == "global":
        everything = numpy_keep(np.concatenate([w.ravel() for w in flat])[None], 0.6)[0]
        bounds = np.cumsum([w.size for w in flat])[:-1]
        masks = [part.reshape(w.shape) for part, w in zip(np.split(everything, bounds), flat, strict=True)]
    else:
        masks = [numpy_keep(w if scope == "row" else w.reshape(1, -1), 0.6).reshape(w.shape) for w in flat]
    for layer, old, mask in zip(net, before, masks, strict=True):
        assert layer.weight.dtype == dtype
        assert_pruned_to(layer, old.weight, torch.from_numpy(mask))


def test_global_scope_over_mixed_dtypes_and_denormals():
    tiny = torch.tensor([[1e-300, 2e-300]], dtype=torch.float64)
    net = nn.Sequential(linear(1, 2, weight=tiny), linear(1, 2, weight=torch.tensor([[1e-40, 1.0]])))
    prune_(net, Magnitude(0.25, scope="global"))
    assert net[0].weight.tolist() == [[0.0, 2e-300]]
    prune_(net, Magnitude(0.75, scope="global"))
    assert net[1].weight.tolist() == [[0.0, 1.0]]


def test_pruning_is_in_place_and_leaves_everything_else():
    net = model()
    weights = [layer.weight for layer in net]
    pointers = [weight.data_ptr() for weight in weights]
    biases = [layer.bias.clone() for layer in net]
    prune_(net, Magnitude(0.5))
    assert all(layer.weight is weight for layer, weight in zip(net, weights, strict=True))
    assert [weight.data_ptr() for weight in weights] == pointers
    assert all(weight.requires_grad and weight.is_leaf and weight.grad_fn is None for weight in weights)
    assert all(torch.equal(layer.bias, bias) for layer, bias in zip(net, biases, strict=True))


def test_pruning_again_to_the_same_sparsity_changes_nothing():
    net = model()
    first = prune_(net, Magnitude(0.5))
    weights = [layer.weight.clone() for layer in net]
    assert prune_(net, Magnitude(0.5)) == first
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(net, weights, strict=True))


@pytest.mark.parametrize("scope", SCOPES)
def test_non_contiguous_weights(scope):
    w = values(12, 20)
    plain = linear(12, 20, weight=w.clone())
    prune_(plain, Magnitude(0.7, scope))
    for view in (w.T.contiguous().T, noncontiguous(w)):
        layer = linear(12, 20, weight=view)
        assert not layer.weight.is_contiguous()
        prune_(layer, Magnitude(0.7, scope))
        assert torch.equal(layer.weight, plain.weight)
    assert view.storage_offset() > 0
    assert torch.isnan(view.as_strided((41,), (1,), 0)).all()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_empty_weights(shape, scope):
    layer = linear(*shape, weight=torch.empty(shape))
    report = prune_(layer, Magnitude(0.5, scope))
    assert (report.nnz, report.numel, report.sparsity) == (0, 0, 0.0)


def test_report():
    net = nn.Sequential(linear(2, 4), nn.ReLU(), linear(3, 2))
    net[0].weight.data[0] = 0.0
    report = prune_(net, Magnitude(0.25))
    first, second = report.layers
    assert (first.fqn, first.shape, first.nnz, first.sparsity) == ("0", (2, 4), 4, 0.5)
    assert (second.fqn, second.shape, second.nnz) == ("2", (3, 2), 4)
    assert (report.nnz, report.numel, report.sparsity) == (8, 14, 1 - 8 / 14)
    assert str(report).splitlines()[0].split() == ["0", "4", "of", "8", "sparsity", "0.5000"]
    assert str(report).splitlines()[-1].split() == ["total", "8", "of", "14", "sparsity", "0.4286"]


def test_only_selected_modules_are_pruned():
    net = model()
    before = copy.deepcopy(net)
    report = prune_(net, Magnitude(0.5), ignore=["0"], filter_fn=lambda module, fqn: fqn != "1")
    assert [layer.fqn for layer in report.layers] == ["2", "3"]
    for i in (0, 1):
        assert torch.equal(net[i].weight, before[i].weight)


def test_nothing_selected():
    net = model()
    with pytest.warns(
        UserWarning,
        match="filter: expected at least one Linear or Conv1d or Conv2d to be selected, got none of 4",
    ):
        report = prune_(net, Magnitude(0.5, scope="global"), targets=["re:nothing"])
    assert report.layers == ()
    assert str(report).split()[0] == "total"


def test_a_shared_weight_is_pruned_and_counted_once():
    net = nn.Sequential(linear(8, 8), linear(8, 8), linear(8, 8, seed=1), linear(8, 8))
    net[1].weight = net[0].weight
    net[3].weight = nn.Parameter(net[0].weight.detach())
    assert net[3].weight is not net[0].weight
    report = prune_(net, Magnitude(0.5, scope="global"))
    assert [layer.fqn for layer in report.layers] == ["0", "2"]
    assert report.nnz == 64
    assert int(net[1].weight.count_nonzero()) + int(net[2].weight.count_nonzero()) == 64


def test_a_weight_shared_with_a_module_that_was_not_selected_is_told():
    net = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": linear(10, 4)})
    net["head"].weight = net["embed"].weight
    message = "embed.weight: not selected, but changed too, because 'head' shares it"
    with pytest.warns(UserWarning, match=message):
        prune_(net, Magnitude(0.5))
    assert int(net["embed"].weight.count_nonzero()) == 20


def test_inside_inference_mode():
    with torch.inference_mode():
        net = model()
        assert prune_(net, Magnitude(0.5, scope="row")).sparsity > 0.4


@pytest.mark.parametrize("sparsity", [0, np.float64(0.5), np.float32(0.5)])
def test_any_real_number_is_a_sparsity(sparsity):
    assert prune_(linear(4, 4), Magnitude(sparsity)).sparsity == float(sparsity)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scope", SCOPES)
def test_cuda_masks_are_the_cpu_masks(scope):
    cpu = nn.Sequential(linear(64, 48, weight=values(64, 48, integer=True)), linear(16, 64))
    cuda = copy.deepcopy(cpu).cuda()
    prune_(cpu, Magnitude(0.7, scope))
    prune_(cuda, Magnitude(0.7, scope))
    for a, b in zip(cpu, cuda, strict=True):
        assert torch.equal(a.weight, b.weight.cpu())
