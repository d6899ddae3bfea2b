"""Int8Linear: dense int8 by oneDNN, against the reference of storage "i8"."""

from __future__ import annotations

import copy

import pytest
import torch
from copies import by_pickle
from generators import tokens, values, weight
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer._int8 import products, rounded, row_scales
from sparseinfer.formats import CSR
from sparseinfer.formats.checks import WrongDtype
from sparseinfer.modules import Int8Linear, int8
from sparseinfer.ops.dense import multiplies_int8, quantized
from sparseinfer.ops.reference import quantize_tokens, reference_int8

N, K = 24, 200
W, B = weight("random", N, K, 0.3), values(N)
SCALES = row_scales(W.abs().amax(1), W.dtype)
INTEGERS = rounded(W, SCALES)
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(params=[True, False], ids=["onednn", "float32"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Int8Linear:
    if not request.param:
        monkeypatch.setattr(int8, "multiplies_int8", lambda weight: False)
    made = Int8Linear(W, B)
    assert made._is_rearranged == (request.param and multiplies_int8(W))
    return made


def bound(x: Tensor) -> Tensor:
    """Of sums up to 255 · |w|, and of what is taken from them for the zero point, in any order."""
    _, _, scale = quantize_tokens(x)
    sums = 255.0 * INTEGERS.double().abs().sum(1)
    return 4 * torch.finfo(torch.float32).eps * (K + 1) * sums * SCALES * scale.double()


@pytest.mark.parametrize("m", [0, 1, 5, 70])
def test_the_reference(layer: Int8Linear, m: int) -> None:
    fmt = CSR.from_dense(INTEGERS, SCALES)
    for x in (tokens(m, K), tokens(m, K) + 3.0, -tokens(m, K).abs(), torch.zeros(m, K)):
        got, expected = layer(x), reference_int8(x, fmt, B)
        assert got.dtype == torch.float32
        assert ((got - expected).abs() <= bound(x) + torch.finfo(torch.float32).eps * B.abs()).all()


def test_the_largest_sums(layer: Int8Linear) -> None:
    """16 bits would not hold two of these products."""
    full = Int8Linear(torch.full((3, 64), 127.0), tokens=1)
    got = full(torch.full((2, 64), 255.0))
    assert torch.equal(got, torch.full((2, 3), 127.0 * 255.0 * 64))


def test_rows_too_long_for_32_bits() -> None:
    layer = Int8Linear(torch.full((2, 70_000), 127.0))
    got = layer(torch.full((1, 70_000), 255.0))
    assert torch.allclose(got, torch.full((1, 2), 127.0 * 255.0 * 70_000), rtol=70_000 * 2.0**-24)


def test_tokens_are_rounded_as_kernels_do() -> None:
    x = torch.cat(
        [tokens(40, K), tokens(4, K) * 1e-38, tokens(4, K) * 1e37, torch.ones(1, K), -torch.ones(1, K)]
    )
    for got, expected in zip(quantized(x), quantize_tokens(x), strict=True):
        assert torch.equal(got.double(), expected.double())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_tokens_that_are_not_finite(layer: Int8Linear, value: float) -> None:
    x = tokens(3, K)
    x[1, 7] = value
    y = layer(x)
    assert y[1].isnan().all()
    assert torch.equal(y[::2], layer(x[::2].contiguous()))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activations_and_shapes(activation: str) -> None:
    x = tokens(12, K).view(3, 4, K)
    plain, fused = Int8Linear(W, B), Int8Linear(W, B, activation=activation)
    assert torch.equal(fused(x), ops.ACTIVATIONS[activation](plain(x)))
    assert torch.equal(plain(x.transpose(0, 1)), plain(x).transpose(0, 1))


def test_the_weight_comes_back(layer: Int8Linear) -> None:
    exact = products(INTEGERS, SCALES, torch.float32)
    assert torch.equal(layer.weight, exact)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.nbytes == N * K + N * 4 + N * 4
    linear = layer.to_linear()
    assert torch.equal(linear.weight, exact)
    x = tokens(5, K)
    for other in (Int8Linear(linear.weight, B), copy.deepcopy(layer), by_pickle(layer)):
        assert torch.equal(other.weight, exact)
        assert torch.equal(other(x), layer(x))
    other = Int8Linear(weight("random", N, K, 0.1, seed=3), values(N, seed=1))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_graphs_compute_the_same() -> None:
    layer = Int8Linear(W, B)
    x = tokens(5, K)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert ((compiled(x) - layer(x)).abs() <= bound(x)).all()


def test_autocast() -> None:
    layer, x = Int8Linear(W, B), tokens(5, K).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, layer(x.float()).bfloat16())


def test_bad_input(layer: Int8Linear) -> None:
    with pytest.raises(WrongDtype, match=r"x: expected torch\.float32 on cpu, got torch\.float64"):
        layer(tokens(2, K).double())
    with pytest.raises(ValueError, match=r"x: expected shape \[..., 200\], got \(2, 199\)"):
        layer(tokens(2, K - 1))
    with pytest.raises(TypeError, match=r"weight: expected torch\.float32, got torch\.bfloat16"):
        Int8Linear(W.bfloat16())
    wrong = W.clone()
    wrong[0, 0] = torch.inf
    with pytest.raises(ValueError, match="weight: expected finite values"):
        Int8Linear(wrong)
    before = layer.weight
    with pytest.raises(RuntimeError, match="weight: expected finite values"):
        layer.load_state_dict({"weight": wrong, "bias": B})
    assert torch.equal(layer.weight, before)
    with torch.enable_grad(), pytest.raises(RuntimeError, match="gradient"):
        layer(tokens(2, K).requires_grad_())
    assert isinstance(layer, nn.Module)
