"""PrepackedLinear: an nn.Linear in every way, with the weight held as oneDNN wants it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from copies import by_pickle
from generators import noncontiguous, tokens, values, weight
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.modules import PrepackedLinear, prepacked, rearranged
from sparseinfer.ops.dense import prepack_available

N, K = 24, 40
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}


def dense(
    n: int = N, k: int = K, *, bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0
) -> nn.Linear:
    """Integer-valued, so that results are exact."""
    linear = nn.Linear(1, 1, bias=bias)
    linear.in_features, linear.out_features = k, n
    linear.weight = nn.Parameter(weight("random", n, k, 0.5, integer=True, dtype=dtype, seed=seed))
    if bias:
        linear.bias = nn.Parameter(values(n, integer=True, dtype=dtype, seed=seed))
    return linear


def assert_same_layer(layer: PrepackedLinear, linear: nn.Linear) -> None:
    assert torch.equal(layer.weight, linear.weight)
    assert (layer.bias is None) == (linear.bias is None)
    assert layer.bias is None or torch.equal(layer.bias, linear.bias)
    for m in (1, 5, 33):
        x = tokens(m, linear.in_features, integer=True, dtype=linear.weight.dtype)
        with torch.no_grad():
            assert torch.equal(layer(x), linear(x))


class TestForward:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("count", [None, 1, 128])
    def test_equals_the_dense_layer(self, dtype: torch.dtype, bias: bool, count: int | None) -> None:
        linear = dense(bias=bias, dtype=dtype)
        layer = PrepackedLinear.from_linear(linear, tokens=count)
        assert layer.prepacked == prepacked._multipliable(linear.weight)
        if dtype == torch.float32:
            assert layer.prepacked == prepack_available(linear.weight)
        assert_same_layer(layer, linear)

    @pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 17), (0,), (3, 0)])
    def test_any_leading_dimensions(self, shape: tuple[int, ...]) -> None:
        linear = dense()
        x = values(*shape, K, integer=True)
        with torch.no_grad():
            y = PrepackedLinear.from_linear(linear)(x)
            assert y.shape == (*shape, N)
            assert torch.equal(y, linear(x))

    def test_input_that_is_not_contiguous(self) -> None:
        linear = dense()
        layer = PrepackedLinear.from_linear(linear)
        x = tokens(5, K, integer=True)
        with torch.no_grad():
            for given in (
                noncontiguous(x),
                x.t().contiguous().t(),
                x[:1].expand(5, K),
                x[None].transpose(0, 1),
            ):
                assert torch.equal(layer(given), linear(given))

    @pytest.mark.parametrize(("n", "k"), [(0, 8), (8, 0), (0, 0), (1, 1), (17, 3)])
    def test_odd_sizes(self, n: int, k: int) -> None:
        assert_same_layer(PrepackedLinear.from_linear(dense(n, k)), dense(n, k))

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_activation(self, activation: str, dtype: torch.dtype) -> None:
        """2·eps·(k + 1)·max|x|·max|w|, which activations amplify by at most 1.13, and their own rounding."""
        w, b = values(N, K, dtype=dtype) / 8, values(N, dtype=dtype)
        x = tokens(17, K, dtype=dtype)
        layer = PrepackedLinear(w, b, activation=activation)
        wanted = ACTIVATIONS[activation](F.linear(x.double(), w.double(), b.double()))
        off = (layer(x).double() - wanted).abs()
        eps = torch.finfo(dtype).eps
        sums = eps if dtype != torch.bfloat16 else torch.finfo(torch.float32).eps  # the dtype that sums have
        tolerance = 1.13 * 2 * sums * (K + 1) * float(x.abs().max() * w.abs().max())
        assert (off <= tolerance + 4 * eps * (wanted.abs() + 1)).all()

    def test_an_activation_that_onednn_does_not_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ops.ACTIVATIONS, "negative", torch.neg)
        linear, x = dense(), tokens(3, K, integer=True)
        with torch.no_grad():
            y = PrepackedLinear.from_linear(linear, activation="negative")(x)
            assert torch.equal(y, -linear(x))

    def test_values_of_every_kind_come_back(self) -> None:
        for dtype, integer in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16)):
            special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), torch.finfo(dtype).tiny / 2, 1.0]
            w = torch.tensor(special, dtype=dtype).repeat(5).reshape(7, 5)
            assert torch.equal(PrepackedLinear(w).weight.view(integer), w.view(integer))

    def test_a_layout_that_cannot_be_read_back_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rearranged, "_same_bits", lambda a, b: False)
        linear = dense()
        layer = PrepackedLinear.from_linear(linear)
        assert not layer.prepacked
        assert_same_layer(layer, linear)

    def test_the_source_is_not_shared(self) -> None:
        for dtype in (torch.float32, torch.float64):
            w, b = values(N, K, dtype=dtype), values(N, dtype=dtype)
            layer = PrepackedLinear(w, b)
            x = tokens(3, K, dtype=dtype)
            before = layer(x)
            w.zero_()
            b.zero_()
            with pytest.raises(RuntimeError, match="weight: expected to be read only"):
                layer.weight.zero_()
            assert torch.equal(layer(x), before)


class TestInferenceOnly:
    def test_a_gradient_is_refused(self) -> None:
        layer = PrepackedLinear.from_linear(dense())
        x = tokens(3, K).requires_grad_()
        with pytest.raises(RuntimeError, match=r"x: expected an input without gradients.*no_grad"):
            layer(x)
        with torch.no_grad():
            assert not layer(x).requires_grad
        with torch.inference_mode():
            assert layer(x).is_inference()
        assert not any(parameter.requires_grad for parameter in layer.parameters())


class TestStateDict:
    @pytest.mark.parametrize("bias", [True, False])
    def test_checkpoints_go_both_ways(self, bias: bool) -> None:
        source, linear = dense(bias=bias, seed=1), dense(bias=bias, seed=2)
        model = nn.Sequential(PrepackedLinear.from_linear(linear))
        assert list(model.state_dict()) == list(nn.Sequential(linear).state_dict())
        result = model.load_state_dict(nn.Sequential(source).state_dict())
        assert result.missing_keys == result.unexpected_keys == []
        assert_same_layer(model[0], source)
        nn.Sequential(linear).load_state_dict(model.state_dict())
        assert_same_layer(model[0], linear)

    @pytest.mark.parametrize("assign", [True, False])
    def test_another_dtype_is_converted(self, assign: bool) -> None:
        layer = PrepackedLinear.from_linear(dense(seed=3))
        layer.load_state_dict(dense(dtype=torch.float64).state_dict(), assign=assign)
        assert_same_layer(layer, dense())

    @pytest.mark.parametrize(
        ("name", "spoil"),
        [("weight", lambda t: t[:3]), ("weight", lambda t: "text"), ("bias", lambda t: t[:7])],
    )
    def test_what_does_not_fit_changes_nothing(self, name: str, spoil: Callable[[Tensor], object]) -> None:
        linear = dense()
        layer = PrepackedLinear.from_linear(linear)
        state = dense(seed=5).state_dict()
        state[name] = spoil(state[name])
        with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
            layer.load_state_dict(state)
        assert_same_layer(layer, linear)

    def test_missing_and_unexpected_keys_are_named(self) -> None:
        model = nn.Sequential(PrepackedLinear.from_linear(dense()))
        with pytest.raises(RuntimeError, match=r'Missing key.*"0.weight"[^$]*Unexpected key.*"0.values"'):
            model.load_state_dict({"0.values": torch.ones(1), "0.bias": torch.ones(N)})


class TestCopies:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bias", [True, False])
    def test_to_linear_is_exact(self, dtype: torch.dtype, bias: bool) -> None:
        linear = dense(bias=bias, dtype=dtype).eval()
        layer = PrepackedLinear.from_linear(linear)
        before = torch.get_rng_state()
        back = layer.to_linear()
        assert torch.equal(torch.get_rng_state(), before)
        assert type(back) is nn.Linear
        assert repr(back) == repr(linear)
        assert not back.training
        assert_same_layer(layer, back)
        assert layer.nbytes == sum(p.nbytes for p in linear.parameters())
        with pytest.raises(ValueError, match="activation: expected 'none', got 'relu'"):
            PrepackedLinear(linear.weight, activation="relu").to_linear()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, by_pickle])
    def test_copy_and_pickle(
        self, dtype: torch.dtype, duplicate: Callable[[PrepackedLinear], PrepackedLinear]
    ) -> None:
        linear = dense(dtype=dtype)
        layer = PrepackedLinear.from_linear(linear, tokens=16)
        twin = duplicate(layer)
        assert_same_layer(twin, linear)
        assert (twin.tokens, twin.activation, twin.prepacked) == (16, "none", layer.prepacked)
        twin.load_state_dict(
            {name: t * 0 for name, t in twin.state_dict().items() if name == "weight"}, False
        )
        assert torch.equal(layer.weight, linear.weight)

    def test_in_a_model(self) -> None:
        layer = PrepackedLinear.from_linear(dense())
        twin = copy.deepcopy(nn.Sequential(layer, layer))
        assert twin[0] is twin[1]
        assert twin[0].bias.data_ptr() != layer.bias.data_ptr()


class TestMoves:
    def test_to_the_same_dtype_and_device(self) -> None:
        assert_same_layer(
            PrepackedLinear.from_linear(dense()).to("cpu", torch.float32).float().cpu(), dense()
        )

    @pytest.mark.parametrize("move", [("half",), ("double",), ("to", "meta")])
    def test_to_another_is_refused(self, move: tuple[str, ...]) -> None:
        layer = PrepackedLinear.from_linear(dense())
        with pytest.raises(
            TypeError, match=r"PrepackedLinear: expected to stay torch.float32 on cpu.*convert"
        ):
            getattr(layer, move[0])(*move[1:])
        assert_same_layer(layer, dense())


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"weight": [[1.0]]}, TypeError, "weight: expected a floating-point tensor, got list"),
            (
                {"weight": torch.ones(2, 2).int()},
                TypeError,
                "weight: expected a floating-point tensor, got torch.int",
            ),
            ({"weight": torch.ones(3)}, ValueError, r"weight: expected \[n, k\] on cpu or cuda, got \(3,\)"),
            ({"weight": torch.ones(3, 3, device="meta")}, ValueError, "weight: expected .* got .* on meta"),
            ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \(2,\) on cpu, got \(3,\)"),
            ({"bias": torch.ones(2).double()}, TypeError, "bias: expected dtype torch.float32"),
            ({"activation": "elu"}, ValueError, "activation: expected one of none, relu, gelu"),
            ({"tokens": 0}, ValueError, "tokens: expected a positive number or None, got 0"),
        ],
    )
    def test_construction(self, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            PrepackedLinear(**{"weight": torch.ones(2, 4), **arguments})

    def test_forward(self) -> None:
        layer = PrepackedLinear.from_linear(dense())
        with pytest.raises(ValueError, match=r"x: expected shape \[..., 40\], got \(3, 41\)"):
            layer(torch.ones(3, 41))
        with pytest.raises(ValueError, match=r"x: expected shape \[..., 40\], got \(\)"):
            layer(torch.ones(()))
        with pytest.raises(TypeError, match=r"x: expected torch.float32 on cpu, got torch.float64"):
            layer(torch.ones(3, K).double())
        with pytest.raises(TypeError, match=r"x: expected torch.float32 on cpu, got .* on meta"):
            layer(torch.ones(3, K, device="meta"))


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh_dynamo(self) -> None:
        torch._dynamo.reset()

    def model(self) -> nn.Sequential:
        return nn.Sequential(
            PrepackedLinear.from_linear(dense(), activation="relu"),
            PrepackedLinear.from_linear(dense(K, N, bias=False)),
        )

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_fullgraph(self, mode: type) -> None:
        eager = self.model()
        compiled = torch.compile(eager, fullgraph=True, backend="eager")
        with mode():
            for m in (1, 3, 16):
                x = tokens(m, K, integer=True)
                assert torch.equal(compiled(x), eager(x))
                assert torch.equal(compiled(x[None]), eager(x[None]))

    def test_another_weight_is_seen(self) -> None:
        eager = self.model()
        compiled = torch.compile(eager, fullgraph=True, backend="eager")
        x = tokens(3, K, integer=True)
        before = compiled(x)
        eager.load_state_dict({name: -t for name, t in eager.state_dict().items()})
        assert torch.equal(compiled(x), eager(x))
        assert not torch.equal(compiled(x), before)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_inductor(self) -> None:
        eager = self.model()
        compiled = torch.compile(eager, fullgraph=True)
        x = tokens(5, K, integer=True)
        with torch.no_grad():
            assert torch.equal(compiled(x), eager(x))

    @pytest.mark.parametrize("strict", [False, True])
    def test_export(self, strict: bool) -> None:
        eager = self.model()
        count = torch.export.Dim("tokens", min=1, max=4096)
        program = torch.export.export(eager, (tokens(5, K),), dynamic_shapes=({0: count},), strict=strict)
        for m in (1, 70):
            x = tokens(m, K, integer=True)
            assert torch.equal(program.module()(x), eager(x))
