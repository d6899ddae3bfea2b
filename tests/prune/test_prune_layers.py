"""Layers as matrices: torch's own layers are the reference."""

from __future__ import annotations

import pytest
import torch
from generators import values
from prune_helpers import KINDS, layer_of_kind, transposed
from torch import nn

from sparseinfer.prune import prunable_layers


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_times_unfolded_input_is_the_output(kind):
    module, x = layer_of_kind(kind)
    module.bias = None
    layer = prunable_layers(module)[""]
    y = layer.matrix() @ layer.unfold(x).mT  # [groups, n, tokens]
    expected = module(x)
    if isinstance(module, nn.Linear):
        expected = expected.flatten(0, -2).T
    else:
        expected = expected if expected.dim() == module.weight.dim() else expected[None]
        expected = expected.flatten(2).transpose(0, 1).flatten(1)
    assert layer.matrix().shape == layer.shape
    # Sums of at most 36 products of values below 4 in magnitude, in another order.
    torch.testing.assert_close(y.flatten(0, 1), expected, rtol=0, atol=2 * 37 * 16 * 2.3e-16)


def test_transformers_conv1d_is_a_linear_that_holds_k_by_n():
    module = transposed(6, 8)
    x = values(3, 4, 8)
    layer = prunable_layers(module)[""]
    assert layer.shape == (1, 6, 8)
    torch.testing.assert_close(
        (layer.matrix() @ layer.unfold(x).mT)[0].T.view(3, 4, 6), module(x) - module.bias
    )


@pytest.mark.parametrize("kind", KINDS)
def test_unmatrix_is_the_way_back(kind):
    layer = prunable_layers(layer_of_kind(kind)[0])[""]
    assert torch.equal(layer.unmatrix(layer.matrix()), layer.weight)
    mask = layer.weight > 0
    assert torch.equal(layer.unmatrix(layer.matrix(mask)), mask)


def test_unmatrix_of_a_transposed_linear():
    layer = prunable_layers(transposed(6, 8))[""]
    assert torch.equal(layer.unmatrix(layer.matrix()), layer.weight)
    assert torch.equal(layer.matrix()[0], layer.weight.T)


def test_matrix_of_a_channels_last_weight():
    module = nn.Conv2d(4, 6, 3)
    flat = prunable_layers(module)[""].matrix().clone()
    module.to(memory_format=torch.channels_last)
    layer = prunable_layers(module)[""]
    assert not layer.weight.is_contiguous()
    assert torch.equal(layer.matrix(), flat)
    assert torch.equal(layer.unmatrix(flat), layer.weight)
