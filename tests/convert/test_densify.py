"""densify_: back to the dense model, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from convert_helpers import linear
from generators import values, weight
from torch import Tensor, nn

from sparseinfer import SparseLinear, convert, convert_, densify_, explain
from sparseinfer.modules import SharedInputLinear
from sparseinfer.modules.packed import PackedLayer

pytestmark = pytest.mark.usefixtures("script")


class Everything(nn.Module):
    """A layer of each kind, in x [2, 8, 12] -> [2, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1, bias=False), nn.ReLU(inplace=True))
        self.conv2 = nn.Conv2d(2, 2, 3, padding="same")
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 12)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, activation="gelu"), 2
        )
        self.lstm = nn.LSTM(12, 8, num_layers=2, batch_first=True, dropout=0.1, bidirectional=True)
        self.gru = nn.GRU(16, 8, bias=False)
        self.out = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Dropout(0.1), nn.Linear(8, 10))
        self.left = nn.LayerNorm(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        x = self.q(x) + self.k(x) * self.v(x)
        x, _ = self.lstm(self.encoder(x))
        x, _ = self.gru(x)
        return self.left(self.out(x).mean(1))


def model() -> Everything:
    dense = Everything().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(dense.parameters()):
            if parameter.dim() > 1:
                drawn = weight("random", len(parameter), parameter[0].numel(), 0.7, seed=seed)
                parameter.copy_(drawn.view(parameter.shape) / 4)
                parameter[0, 0] = -0.0  # a zero with a sign is a zero
    return dense


def types(module: nn.Module) -> dict[str, type]:
    return {name: type(child) for name, child in module.named_modules()}


def assert_equal_models(got: nn.Module, expected: nn.Module, x: Tensor | None = None) -> None:
    assert types(got) == types(expected)
    state, wanted = got.state_dict(), expected.state_dict()
    assert list(state) == list(wanted)
    for name, t in wanted.items():
        assert state[name].dtype == t.dtype
        assert torch.equal(state[name], t)
    modes = {name: module.training for name, module in got.named_modules()}
    assert modes == {name: module.training for name, module in expected.named_modules()}
    if x is not None:
        with torch.no_grad():
            assert torch.equal(got(x), expected(x))


X = values(2, 8, 12)


class TestEverything:
    @pytest.mark.parametrize("memory", ["speed", 1.5, "compact"])
    def test_there_and_back(self, memory: str | float) -> None:
        dense = model()
        fast = convert(dense, example_inputs=X, memory=memory)
        rows = explain(fast).rows
        if memory == "speed":
            assert {row.decision for row in rows} == {"sparse"}
            assert type(fast.k) is SharedInputLinear
            assert type(fast.conv1[1]) is nn.ReLU
            assert type(fast.out[1]) is nn.SiLU
            # Two Sequentials have classes of their own, that hand over what their layers compute.
            assert type(fast.conv1) is not nn.Sequential
            assert type(fast.out) is not nn.Sequential
        with torch.no_grad():
            assert torch.allclose(fast(X), dense(X), atol=1e-4)  # how close is for the tests of each kind
        assert densify_(fast) is fast
        assert_equal_models(fast, dense, X)

    def test_there_and_back_and_there_again(self) -> None:
        dense = model()
        fast = convert(dense, example_inputs=X)
        again = convert_(densify_(copy.deepcopy(fast)), example_inputs=X)
        assert types(again) == types(fast)
        assert explain(again) == explain(fast)
        with torch.no_grad():
            assert torch.equal(again(X), fast(X))
        assert_equal_models(densify_(again), dense, X)

    def test_in_place(self) -> None:
        dense = model()
        fast = convert_(copy.deepcopy(dense), example_inputs=X)
        assert_equal_models(densify_(fast), dense, X)

    def test_in_training_mode(self) -> None:
        dense = model().train()
        dense.encoder.layers[1].eval()
        fast = convert(dense, example_inputs=X)
        assert_equal_models(densify_(fast), dense)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        dense = model().to(dtype)
        fast = convert(dense, example_inputs=X.to(dtype), memory="speed")
        assert any(isinstance(module, PackedLayer) for module in fast.modules())
        assert_equal_models(densify_(fast), dense, X.to(dtype))

    def test_can_be_trained_again(self) -> None:
        fast = densify_(convert(model(), example_inputs=X)).train()
        fast(X).sum().backward()
        assert all(parameter.grad is not None for parameter in fast.parameters())

    def test_nothing_is_shared_with_the_model_that_was_converted(self) -> None:
        dense = model()
        before = copy.deepcopy(dense)
        fast = densify_(convert(dense, example_inputs=X))
        assert not set(fast.modules()) & set(dense.modules())
        with torch.no_grad():
            for parameter in fast.parameters():
                parameter.fill_(3)
        assert_equal_models(dense, before)


class TestParts:
    def test_rounded_weights_stay_rounded(self) -> None:
        dense = nn.Sequential(nn.Linear(40, 24)).eval()
        with torch.no_grad():
            dense[0].weight.copy_(weight("random", 24, 40))
        fast = densify_(convert(dense, weights=torch.bfloat16))
        assert fast[0].weight.dtype == torch.float32
        assert torch.equal(fast[0].weight, dense[0].weight.bfloat16().float())
        assert torch.equal(fast[0].bias, dense[0].bias)

    def test_a_layer_under_two_names(self) -> None:
        shared = linear(40, 40)
        fast = densify_(convert(nn.Sequential(shared, nn.Tanh(), shared).eval()))
        assert type(fast[0]) is nn.Linear
        assert fast[0] is fast[2]

    def test_the_record_is_forgotten(self) -> None:
        fast = convert(nn.Sequential(linear()).eval())
        assert explain(fast).rows
        assert explain(densify_(fast)).rows == ()

    def test_a_model_without_converted_layers(self) -> None:
        dense = nn.Sequential(linear(), nn.ReLU())
        kept = list(dense)
        assert list(densify_(dense)) == kept

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="expected a module that holds layers, got SparseLinear itself"):
            densify_(SparseLinear.from_linear(linear()))
        with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
            densify_(3)
