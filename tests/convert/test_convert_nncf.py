"""Models pruned by NNCF, whose masks are applied by a wrapper of the model's forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparseinfer as si

nncf = pytest.importorskip("nncf", reason="needs NNCF (the extra `test` installs it)")

MODES = (
    nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL,
    nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
    nncf.PruneMode.UNSTRUCTURED_REGULARIZATION_BASED,
)


class Tagger(nn.Module):
    """Two Linears that share a weight, a convolution, and one Linear more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.conv, self.head = nn.Conv1d(64, 32, 3), nn.Linear(32, 48)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        result: Tensor = self.head(self.conv(y.transpose(1, 2)).transpose(1, 2))
        return result


@pytest.fixture(params=MODES, ids=lambda mode: mode.value)
def pruned(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 12, 64)
    regular = request.param is MODES[2]
    model = nncf.prune(Tagger().eval(), mode=request.param, ratio=None if regular else 0.8, examples_inputs=x)
    if regular:  # as training would leave it
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith(".mask"):
                    p.copy_(torch.where(torch.rand_like(p) < 0.8, -3.0, 3.0))
    return model.eval(), x


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(x)
    return result


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv1d))]


def test_convert_takes_the_zeros_and_leaves_the_model_as_it_is(pruned: tuple[nn.Module, Tensor]) -> None:
    model, x = pruned
    expected, keys = outputs(model, x), list(model.state_dict())
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    fast = si.convert(model, example_inputs=(x,), memory="compact")
    assert {type(fast.conv), type(fast.head)} == {si.SparseConv1d, si.SparseLinear}
    assert "__nncf_hooks" not in fast._modules
    with torch.no_grad():
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == keys
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == weights
    assert torch.equal(outputs(model, x), expected)


def test_convert_in_place_and_densify(pruned: tuple[nn.Module, Tensor]) -> None:
    model, x = pruned
    expected = outputs(model, x)
    si.convert_(model, example_inputs=(x,), memory="compact")
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-4, atol=1e-5)
    si.densify_(model)
    assert "__nncf_hooks" not in model._modules
    assert "forward" not in vars(model)
    assert all(float((layer.weight == 0).float().mean()) > 0.2 for layer in layers_of(model))
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-4, atol=1e-5)
    copy.deepcopy(model)


def test_an_error_leaves_the_model_as_it_was(pruned: tuple[nn.Module, Tensor]) -> None:
    model, x = pruned
    expected = outputs(model, x)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        si.convert_(model, example_inputs=(x[..., :5],))
    assert "__nncf_hooks" in model._modules
    assert torch.equal(outputs(model, x), expected)


def test_refuses_other_hooks() -> None:
    from nncf.torch.function_hook import register_post_function_hook

    model = nncf.prune(Tagger().eval(), mode=MODES[0], ratio=0.5, examples_inputs=torch.randn(2, 12, 64))
    register_post_function_hook(model, "head.weight", 0, nn.Identity())
    with pytest.raises(
        ValueError, match=r"model: expected only pruning masks of NNCF, got Identity at .*nncf\.strip"
    ):
        si.convert(model)
    assert "__nncf_hooks" in model._modules
