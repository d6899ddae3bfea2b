"""What prune_ refuses, in which words, and that the model is untouched afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prune_helpers import linear, snapshot
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from sparseinfer.prune import Magnitude, prune_


def model() -> nn.Sequential:
    return nn.Sequential(*(linear(8, 8) for _ in range(4)))


def with_nan() -> nn.Linear:
    return linear(2, 2, weight=torch.tensor([[1.0, float("nan")], [float("nan"), 2.0]]))


def with_torch_prune() -> nn.Linear:
    return torch_prune.l1_unstructured(linear(2, 2), "weight", amount=0.5)


def with_parametrization() -> nn.Linear:
    layer = linear(2, 2)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


def with_plain_tensor() -> nn.Linear:
    layer = linear(2, 2)
    del layer.weight
    layer.weight = torch.ones(2, 2)
    return layer


def with_inference_tensor() -> nn.Linear:
    with torch.inference_mode():
        return linear(2, 2)


def with_integers() -> nn.Linear:
    layer = linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int32), requires_grad=False)
    return layer


BAD_LAYERS = {
    with_nan: (ValueError, "1.weight: expected numbers, got 2 NaN (the rank of a NaN is undefined)"),
    with_torch_prune: (
        ValueError,
        "1.weight: expected a parameter, got a tensor computed by torch.nn.utils.prune "
        "(call torch.nn.utils.prune.remove(module, 'weight') first)",
    ),
    with_parametrization: (
        ValueError,
        "1.weight: expected a parameter, got a tensor computed by a parametrization "
        "(call torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') first)",
    ),
    with_plain_tensor: (
        ValueError,
        "1.weight: expected a parameter, got a tensor computed by the module (make it a parameter first)",
    ),
    with_inference_tensor: (
        ValueError,
        "1.weight: expected a writable weight, got an inference tensor "
        "(call this under torch.inference_mode())",
    ),
    with_integers: (
        TypeError,
        "1.weight: expected a dense floating-point weight, got torch.int32, torch.strided",
    ),
    lambda: linear(3, 2, weight=torch.ones(1, 2).expand(3, 2)): (
        ValueError,
        "1.weight: expected one memory cell per weight, got an expanded tensor "
        "(give the module a .clone() of it)",
    ),
    lambda: nn.Linear(2, 2, device="meta"): (
        ValueError,
        "1.weight: expected a weight with data, got a meta tensor (load the model first)",
    ),
    lambda: linear(2, 2, weight=torch.eye(2).to_sparse()): (
        TypeError,
        "1.weight: expected a dense floating-point weight, got torch.float32, torch.sparse_coo",
    ),
}


@pytest.mark.parametrize("make", BAD_LAYERS)
def test_a_bad_layer_leaves_the_whole_model_untouched(make):
    error, message = BAD_LAYERS[make]
    first = linear(4, 4)
    before = snapshot(first)
    version = first.weight._version
    with pytest.raises(error) as raised:
        prune_(nn.Sequential(first, make()), Magnitude(0.5))
    assert str(raised.value) == message
    assert snapshot(first) == before
    assert first.weight._version == version


def test_a_lazy_layer_leaves_the_model_untouched():
    net = nn.Sequential(linear(4, 4), nn.LazyLinear(3))
    before = snapshot(net[0])
    with pytest.raises(
        ValueError, match=r"1.weight: expected an initialised weight, got a lazy one \(run the"
    ):
        prune_(net, Magnitude(0.5))
    assert snapshot(net[0]) == before


def test_a_filter_that_fails_leaves_the_model_untouched():
    net = model()
    before = snapshot(net)

    def fails(module, fqn):
        if fqn == "2":
            raise KeyError(fqn)
        return True

    with pytest.raises(KeyError):
        prune_(net, Magnitude(0.5), filter_fn=fails)
    assert snapshot(net) == before


def test_a_bad_layer_that_is_ignored_does_no_harm():
    net = nn.Sequential(linear(4, 4), with_nan())
    assert prune_(net, Magnitude(0.5), ignore=["1"]).nnz == 8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((float("nan"),), ValueError, "sparsity: expected a number in [0, 1), got nan"),
        ((float("inf"),), ValueError, "sparsity: expected a number in [0, 1), got inf"),
        ((np.float32("nan"),), ValueError, "sparsity: expected a number in [0, 1), got nan"),
        ((1.0,), ValueError, "sparsity: expected a number in [0, 1), got 1.0"),
        ((-0.1,), ValueError, "sparsity: expected a number in [0, 1), got -0.1"),
        ((50,), ValueError, "got 50 (a fraction, not percent: 0.5 prunes half)"),
        (("0.5",), TypeError, "sparsity: expected a float, got str"),
        ((None,), TypeError, "sparsity: expected a float, got NoneType"),
        ((True,), TypeError, "sparsity: expected a float, got bool"),
        ((0.5j,), TypeError, "sparsity: expected a float, got complex"),
        ((torch.tensor([0.5, 0.5]),), TypeError, "sparsity: expected a float, got Tensor"),
        ((0.5, "model"), ValueError, "scope: expected one of ('layer', 'row', 'global'), got 'model'"),
        ((0.5, None), ValueError, "scope: expected one of ('layer', 'row', 'global'), got None"),
        ((0.5, []), ValueError, "scope: expected one of ('layer', 'row', 'global'), got []"),
    ],
)
def test_bad_magnitude(arguments, error, message):
    with pytest.raises(error) as raised:
        Magnitude(*arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": 0.5}, "method: expected a pruning method such as Magnitude(0.5), got 0.5"),
        ({"model": nn.Linear}, "model: expected a torch.nn.Module, got type"),
        ({"filter_fn": True}, "filter_fn: expected a callable (module, fqn) -> bool, got bool"),
    ],
)
def test_bad_arguments(how, message):
    with pytest.raises(TypeError) as raised:
        prune_(**{"model": model(), "method": Magnitude(0.5)} | how)
    assert str(raised.value) == message
