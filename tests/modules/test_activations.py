"""Which activation a module or a function is: known by what it is, never tried out."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.modules.activations import activation_name

EXACT: dict[str, Any] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Returns(nn.Module):
    """Only hands its input to one of torch's functions."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Tanh(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        """With a docstring, and an option."""
        return torch.nn.functional.gelu(hidden, approximate="tanh")


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=True)


class Held(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Learned(nn.ReLU):
    """Has more to hold, but computes the same."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))


class Inherits(Returns):
    pass


class Mine(nn.Module):
    """x if x > 0, else 0, by another name."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


class FATReLU(nn.Module):
    """A ReLU with a threshold above zero: what it does is seen only between the two."""

    def forward(self, x: Tensor) -> Tensor:
        return F.threshold(x, 0.01, 0.0)


class Pair(nn.ReLU):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class Overrides(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input)


class Calls(nn.ReLU):
    def __call__(self, x: Tensor) -> Tensor:
        return -super().__call__(x)


class CallsWithin(nn.ReLU):
    def _call_impl(self, x: Tensor) -> Tensor:
        return -super()._call_impl(x)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        return F.relu(x)


class Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(-x)


class Another(nn.Module):
    """Of something else than its argument."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(y)


class Several(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(x)


class Optional(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return F.relu(x)


class Starred(nn.Module):
    def forward(self, *x: Tensor) -> Tensor:
        return F.relu(x)  # type: ignore[arg-type]


class Chosen(nn.Module):
    how = "tanh"

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.how)


class NoGrad(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Shadowed(nn.Module):
    """The name of torch's module is that of an argument."""

    def forward(self, F: Any) -> Tensor:
        return F.relu(F)


class Bound(nn.Module):
    """What a module finds in its class is a method of it."""

    function = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


y = torch.ones(3)


def replaced() -> nn.Module:
    module = nn.ReLU()
    module.forward = lambda input: -input  # type: ignore[method-assign]
    return module


def exact_gelu_by_another_name() -> nn.Module:
    module = nn.GELU()
    module.approximate = "something new"
    return module


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (nn.SiLU(inplace=True), "silu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(0, 6.0), "relu6"),
        (nn.Hardswish(), "hardswish"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (Returns(), "relu"),
        (Tanh(), "gelu_tanh"),
        (InPlace(), "silu"),
        (Learned(), "relu"),
        (Inherits(), "relu"),
        (Held(F.relu), "relu"),
        (Held(functools.partial(F.gelu, approximate="tanh")), "gelu_tanh"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_modules(module: nn.Module, name: str, training: bool) -> None:
    """Training mode is nothing to them."""
    assert activation_name(module.train(training)) == name
    # And it is what they compute.
    x = torch.linspace(-6, 6, 101)
    assert torch.equal(module(x.clone()), EXACT[name](x))


@pytest.mark.parametrize(
    "module",
    [
        nn.Threshold(0.0, 0.0),
        nn.Threshold(0.01, 0.0),
        Mine(),
        FATReLU(),
        Pair(),
        Overrides(),
        Calls(),
        CallsWithin(),
        Twice(),
        Negative(),
        Another(),
        Several(),
        Optional(),
        Starred(),
        Chosen(),
        NoGrad(),
        Shadowed(),
        Bound(),
        Held(F.mish),
        Held(functools.partial(F.relu, torch.ones(3))),
        Held(functools.partial(F.gelu, approximate="new")),
        Held(functools.partial(F.silu, other=1)),
        replaced(),
        exact_gelu_by_another_name(),
        nn.Tanh(),
        nn.Identity(),
        nn.Dropout(),
        nn.LayerNorm(4001),
        nn.Softmax(-1),
        nn.Softplus(),
        nn.Hardtanh(),
        nn.Hardtanh(0.0, 20.0),
        nn.LeakyReLU(1e-7),
        nn.GLU(),
        nn.PReLU(init=0.0),
        nn.Sequential(nn.ReLU()),
        nn.Linear(3, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_other_modules(module: nn.Module) -> None:
    assert activation_name(module.eval()) == "none"


def test_a_class_that_was_patched_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guided backpropagation, and tools that count, put another forward into torch's own class."""
    for kind in (nn.ReLU, nn.SiLU, nn.GELU):
        monkeypatch.setattr(kind, "forward", lambda self, input: -input)
        assert activation_name(kind()) == "none"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (functools.partial(F.relu, inplace=True), "relu"),
        (functools.partial(F.gelu, approximate="none"), "gelu"),
        (functools.partial(F.gelu, approximate="tanh"), "gelu_tanh"),
        (functools.partial(functools.partial(F.gelu, approximate="none"), approximate="tanh"), "gelu_tanh"),
        (functools.partial(F.gelu, approximate="exact"), "none"),
        (functools.partial(F.relu, torch.ones(2)), "none"),
        (functools.partial(F.silu, out=None), "none"),
        (lambda x: F.relu(x), "none"),
        (torch.sigmoid, "sigmoid"),
        (F.relu6, "relu6"),
        (functools.partial(F.hardswish, inplace=True), "hardswish"),
        (F.hardsigmoid, "hardsigmoid"),
        (F.hardtanh, "none"),
        ([F.relu], "none"),
        (None, "none"),
        ("relu", "none"),
        (nn.ReLU, "none"),
    ],
    ids=str,
)
def test_functions(function: object, name: str) -> None:
    assert activation_name(function) == name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_accurate", "gelu_tanh"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("relu", "relu"),
        ("quick_gelu", "none"),
        ("gelu_10", "none"),
        ("relu2", "none"),
        ("relu6", "relu6"),
        ("sigmoid", "sigmoid"),
        ("mish", "none"),
        ("laplace", "none"),
        ("linear", "none"),
        ("leaky_relu", "none"),
    ],
)
def test_those_of_transformers(key: str, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    module = transformers.activations.ACT2FN[key].eval()
    assert activation_name(module) == name
    if name == "none":
        return
    # A formula is the function but for rounding: a dozen operations, each of eps, on values up to 6.
    x = torch.linspace(-6, 6, 1001)
    error = (module(x).double() - EXACT[name](x.double())).abs().max()
    assert error <= 12 * torch.finfo(torch.float32).eps * 6


def test_every_one_of_transformers_is_named_rightly_or_not_at_all() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    x = torch.linspace(-30, 30, 6001)
    named = 0
    for key in transformers.activations.ACT2FN:
        try:
            module = transformers.activations.ACT2FN[key].eval()
        except ImportError:  # one that needs a package of its own
            continue
        name = activation_name(module)
        if name != "none":
            named += 1
            error = (module(x).double() - EXACT[name](x.double())).abs().max()
            assert error <= 12 * torch.finfo(torch.float32).eps * 30, key
    assert named >= 8
