"""convert(precision="int8" and "int8-weights"): what may hold int8, and what it is rounded by."""

from __future__ import annotations

import pytest
import torch
from convert_helpers import Script
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer import ops
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.convert.survey.weights import Weights, read
from sparseinfer.formats import CSR
from sparseinfer.modules import Int8Linear, SharedInputLinear, SparseLinear
from sparseinfer.ops.dense import PLAIN, PREPACKED_INT8, multiplies_int8

I8 = torch.int8


def pruned(n: int = 96, k: int = 160, sparsity: float = 0.8) -> nn.Linear:
    linear = nn.Linear(k, n)
    with torch.no_grad():
        linear.weight *= torch.rand(n, k) >= sparsity
    return linear


def test_rows_are_rounded_by_their_largest_weight_or_by_the_scales_they_are_made_of() -> None:
    linear = pruned()
    weights = read(linear)
    assert isinstance(weights, Weights)
    rounded = weights.rounded(I8)
    assert isinstance(rounded, Weights)
    assert rounded.scales is not None
    steps = rounded.scales[:, None]
    assert ((rounded.weight * steps - linear.weight).abs() <= 0.5001 * steps).all()
    assert rounded.weight.abs().amax(1).tolist() == [127] * 96
    scales, integers = torch.rand(96) + 0.5, torch.randint(-100, 101, (96, 160))
    scales = (scales * 1024).round() / 1024
    with torch.no_grad():
        linear.weight.copy_(integers * scales[:, None])
    linear.register_buffer("weight_scale", scales)
    found = read(linear)
    assert isinstance(found, Weights)
    exact = found.rounded(I8)
    assert isinstance(exact, Weights)
    assert torch.equal(exact.weight, integers.to(I8))
    assert exact.scales is not None
    assert torch.equal(exact.scales, scales)


def test_weights_that_int8_cannot_hold_are_not_tried() -> None:
    infinite = Weights(torch.tensor([[1.0, float("inf")]]), None)
    assert infinite.rounded(I8) == "its weight has values that int8 cannot hold"
    long = Weights(torch.ones(1, 70_000), None)
    assert long.rounded(I8) == "its rows are too long for 32-bit sums of int8"


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_the_permission_lists_storages_of_int8(precision: str) -> None:
    roundings = ConvertOptions(precision=precision).roundings
    assert roundings[0] == (None, None)
    read_as = {activations for weights, activations in roundings if weights == I8}
    assert read_as == ({None, torch.uint8} if precision == "int8" else {None})
    with pytest.raises(ValueError, match="weights: expected None"):
        ConvertOptions(precision=precision, weights=torch.bfloat16)


def only_int8(monkeypatch: pytest.MonkeyPatch, x_dtype: torch.dtype | None) -> None:
    """The planner is given nothing else to choose from."""
    from sparseinfer.convert import options as module

    table = {**module.PRECISIONS, "int8": (module.Rounding(I8, x_dtype),)}
    monkeypatch.setattr(module, "PRECISIONS", table)


@pytest.mark.parametrize("x_dtype", [torch.uint8, None], ids=["int8", "int8-weights"])
def test_a_converted_model_computes_in_int8(
    monkeypatch: pytest.MonkeyPatch, x_dtype: torch.dtype | None
) -> None:
    only_int8(monkeypatch, x_dtype)
    model = nn.Sequential(pruned(512, 512, 0.95), nn.ReLU(), pruned(256, 512, 0.95)).eval()
    x = torch.randn(8, 512)
    expected = model(x).detach()
    fast = si.convert(model, example_inputs=(x,), precision="int8", memory="compact")
    layers = [layer for layer in fast.modules() if isinstance(layer, SparseLinear)]
    assert len(layers) == 2
    formats = [layer.to_format() for layer in layers]
    assert {fmt.dtype for fmt in formats} == {I8}
    y = fast(x).detach()
    assert float((y - expected).norm() / expected.norm()) < 0.05
    assert "int8" in str(si.explain(fast))
    copy = si.convert(model, example_inputs=(x,), precision="int8", memory="compact")
    copy.load_state_dict(fast.state_dict())
    assert torch.equal(copy(x), y)
    dense = si.densify_(fast)
    weights: list[Tensor] = [m.weight for m in dense.modules() if isinstance(m, nn.Linear)]
    for fmt, weight in zip(formats, weights, strict=True):
        assert torch.equal(fmt.to_dense(), weight)


def test_every_candidate_stays_allowed() -> None:
    model = pruned(512, 512, 0.9).eval()
    fast = si.convert(model, example_inputs=(torch.randn(64, 512),), precision="int8")
    x = torch.ones(3, 512)
    with torch.no_grad():
        assert float((fast(x) - model(x)).norm()) < 0.05 * 512**0.5


def test_a_layer_of_int8_is_its_reference() -> None:
    integers = (torch.randint(-127, 128, (64, 80)) * (torch.rand(64, 80) > 0.7)).to(I8)
    fmt = CSR.from_dense(integers, torch.rand(64))
    x = torch.randn(20, 80)
    assert torch.equal(SparseLinear.from_format(fmt)(x), ops.reference_int8(x, fmt))


class TestDenseInInt8:
    @pytest.fixture(autouse=True)
    def faster(self, script: Script) -> None:
        script.ratio = lambda layout, m: 2.0
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED_INT8: 4.0}

    def test_where_it_is_allowed_and_fastest(self) -> None:
        dense, x = nn.Sequential(pruned(sparsity=0.5)).eval(), torch.randn(6, 160)
        fast = si.convert(dense, precision="int8")
        assert isinstance(fast[0], Int8Linear)
        (row,) = si.explain(fast).rows
        assert (row.decision, row.dtype, row.dense_us[0]) == ("prepacked", "int8", 4.0)
        assert row.nbytes == 96 * 160 + 96 * 4 + 96 * 4
        weights = read(dense[0])
        assert isinstance(weights, Weights)
        rounded = weights.rounded(I8)
        assert isinstance(rounded, Weights)
        fmt = CSR.from_dense(rounded.weight, rounded.scales)
        with torch.no_grad():
            assert torch.allclose(fast(x), ops.reference_int8(x, fmt, dense[0].bias), atol=1e-5)

    @pytest.mark.skipif(not multiplies_int8(torch.ones(1, 1)), reason="this CPU has no VNNI")
    def test_only_where_the_integers_come_back(self) -> None:
        """Not with scales of `quantize_` that the weight's largest values do not tell."""

        def names(linear: nn.Linear) -> tuple[str, ...]:
            weights = read(linear)
            assert isinstance(weights, Weights)
            rounded = weights.rounded(I8)
            assert isinstance(rounded, Weights)
            return LinearCandidates(weights, rounded, torch.float32, torch.uint8).dense_names

        linear = pruned()
        assert PREPACKED_INT8 in names(linear)
        with torch.no_grad():
            linear.weight.copy_(torch.randint(-100, 101, (96, 160)) * 0.5)
        linear.register_buffer("weight_scale", torch.full((96,), 0.5))
        assert PREPACKED_INT8 not in names(linear)


def test_linears_of_one_input_round_it_once(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are rows of one matrix, which one call multiplies by."""

    class QKV(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (pruned() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) * self.k(x) + self.v(x)

    script.ratio = lambda layout, m: 0.5 if layout.storage == "i8" else 1.5
    dense, x = QKV().eval(), torch.randn(6, 160)
    fast = si.convert(dense, example_inputs=(x,), precision="int8")
    assert isinstance(fast.q, SharedInputLinear)
    calls, parts = [], SparseLinear.parts
    monkeypatch.setattr(SparseLinear, "parts", lambda *args: (calls.append(args), parts(*args))[1])
    with torch.no_grad():
        fast(x)
    ((whole, given, sizes, wanted),) = calls
    assert ops.describe(whole.packing_0).storage == "i8"
    assert given is x
    assert list(sizes) == [96] * 3
    assert all(wanted)
