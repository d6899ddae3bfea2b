"""Memory budgets and shorter dtypes of `convert`, and moves of converted models; times are scripted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from convert_helpers import K, Script, kinds, linear, model, outputs_equal
from generators import tokens, values, weight
from torch import nn

from sparseinfer import SparseConv2d, SparseLinear, convert, densify_, explain
from sparseinfer.modules import PrepackedLinear, SparseLSTM

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16, torch.float16)}


pytestmark = pytest.mark.usefixtures("script")


def layer(sparsity: float = 0.8, n: int = 96, k: int = 200) -> nn.Sequential:
    dense = nn.Linear(k, n)
    with torch.no_grad():
        dense.weight.copy_(weight("random", n, k, sparsity))
        dense.bias.copy_(values(n))
    return nn.Sequential(dense).eval()


def packed_nbytes(fast: nn.Module) -> int:
    return sum(t.nbytes for name, t in fast.named_buffers() if "packing_" in name)


class TestMemory:
    @pytest.mark.parametrize("sparsity", [0.4, 0.5, 0.7, 0.9])
    @pytest.mark.parametrize("memory", [0.3, 0.6, 1.0, 1.3])
    def test_packings_keep_within_it(self, script: Script, memory: float, sparsity: float) -> None:
        # Each bucket would like another layout.
        script.ratio = lambda layout, m: 0.5 if (layout.packing == "sell") == (m < 8) else 0.8
        dense = layer(sparsity)
        fast = convert(dense, tokens=(1, 8, 16, 128), memory=memory)
        if kinds(fast) == [SparseLinear]:
            assert packed_nbytes(fast) <= memory * dense[0].weight.nbytes
        else:
            assert explain(fast).rows[0].reason == f"no layout takes at most {memory:g} of the dense bytes"

    def test_the_default_is_the_dense_bytes(self, script: Script) -> None:
        script.ratio = lambda layout, m: 0.5 if (layout.packing == "sell") == (m < 8) else 0.8
        dense = layer(0.5)
        nbytes = dense[0].weight.nbytes
        fast, fastest = convert(dense), convert(dense, memory="speed")
        assert packed_nbytes(fast) <= nbytes < packed_nbytes(fastest)
        assert convert(dense, memory=1.0)[0].plan == fast[0].plan
        assert convert(dense, memory=99)[0].plan == fastest[0].plan
        for m in (1, 9, 40):
            x = tokens(m, 200)
            with torch.no_grad():
                wanted = dense.double()(x.double())
                dense.float()
                bound = (
                    2 * EPS[torch.float32] * (200 + 1) * float(x.abs().max() * dense[0].weight.abs().max())
                )
                assert (fast(x) - wanted).abs().max() <= bound
                assert (fastest(x) - wanted).abs().max() <= bound

    def test_of_what_fits_the_fastest(self, script: Script) -> None:
        script.ratio = lambda layout, m: 0.2 if layout.packing == "rowgroup" else 0.4
        dense = layer(0.4)
        sizes = {
            name: SparseLinear.from_linear(dense[0], packings=[name]).nbytes / dense[0].weight.nbytes
            for name in ("rowgroup", "bitmap")
        }
        assert sizes["bitmap"] < sizes["rowgroup"]
        for name, memory in (("rowgroup", sizes["rowgroup"] + 0.01), ("bitmap", sizes["rowgroup"] - 0.02)):
            assert name in convert(dense, tokens=(128,), memory=memory)[0].plan

    def test_nothing_fits(self) -> None:
        fast = convert(layer(0.4), memory=0.1)
        assert kinds(fast) == [nn.Linear]
        assert explain(fast).rows[0].reason == "no layout takes at most 0.1 of the dense bytes"

    @pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.float16])
    def test_dense_bytes_are_those_of_the_model(self, weights: torch.dtype | None) -> None:
        """Not of its weights rounded: half as many."""
        dense = layer(0.35)
        fast = convert(dense, weights=weights, memory="compact")
        assert kinds(fast) == [SparseLinear]
        assert packed_nbytes(fast) < dense[0].weight.nbytes * (0.75 if weights is None else 0.45)
        kept = convert(layer(0.4), weights=torch.bfloat16, tokens=(128,), memory=0.99)
        assert kinds(kept) == [SparseLinear]


class TestRounded:
    @pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16])
    def test_integers_stay_exact(self, weights: torch.dtype) -> None:
        fast = convert(model(), weights=weights)
        assert kinds(fast) == [SparseLinear, nn.ReLU, SparseLinear, nn.Linear]
        assert all(outputs_equal(fast, model(), m) for m in (1, 5, 16, 64))

    @pytest.mark.parametrize(
        ("weights", "activations"),
        [(torch.bfloat16, None), (torch.float16, None), (torch.bfloat16, torch.bfloat16)],
    )
    @pytest.mark.parametrize("memory", [1.0, "speed", "compact"])
    @pytest.mark.parametrize("m", [1, 5, 16, 70])
    def test_error_bounds(
        self, weights: torch.dtype, activations: torch.dtype | None, memory: Any, m: int
    ) -> None:
        dense = layer()
        x = tokens(m, 200)
        fast = convert(dense, weights=weights, activations=activations, memory=memory)
        assert kinds(fast) == [SparseLinear]
        with torch.no_grad():
            got, wanted = fast(x), copy.deepcopy(dense).double()(x.double())
            assert got.dtype == torch.float32
            rounded = dense[0].weight.to(weights)
            assert torch.equal(fast[0].weight, rounded)
            # Rounding to nearest is off by half an eps, of each factor; sums are in float32.
            per_product = EPS[weights] / 2 + (EPS[activations] / 2 if activations else 0.0)
            products = x.double().abs() @ dense[0].weight.double().abs().t()
            nnz = int((dense[0].weight != 0).sum(1).max())
            largest = float(x.abs().max() * dense[0].weight.abs().max())
            bound = 1.01 * per_product * products + 2 * EPS[torch.float32] * (nnz + 1) * largest
            assert ((got - wanted).abs() <= bound).all()
            # And the rounding did happen, or this would be a test of nothing.
            exact = 2 * EPS[torch.float32] * (nnz + 1) * largest
            assert (got - wanted).abs().max() > exact

    def test_without_activations_only_weights_are_rounded(self) -> None:
        dense = layer()
        fast = convert(dense, weights=torch.bfloat16)
        for m in (1, 16, 70):
            x = tokens(m, 200)
            with torch.no_grad():
                rounded = dense[0].weight.bfloat16().double()
                wanted = x.double() @ rounded.t() + dense[0].bias.double()
                nnz = int((rounded != 0).sum(1).max())
                bound = 2 * EPS[torch.float32] * (nnz + 1) * float(x.abs().max() * rounded.abs().max())
                assert (fast(x) - wanted).abs().max() <= bound

    def test_more_than_float16_holds(self) -> None:
        dense = nn.Sequential(linear(), linear(8, 24))
        with torch.no_grad():
            dense[0].weight[3, 5] = 70000.0
        fast = convert(dense, weights=torch.float16)
        assert kinds(fast) == [nn.Linear, SparseLinear]
        row = explain(fast).rows[0]
        assert (row.decision, row.reason) == ("dense", "its weight exceeds the range of torch.float16")
        assert (row.nbytes, row.sparsity) == (row.dense_nbytes, pytest.approx(0.8, abs=0.05))
        assert kinds(convert(dense, weights=torch.bfloat16)) == [SparseLinear, SparseLinear]

    def test_infinite_weights_are_kept(self) -> None:
        dense = nn.Sequential(linear())
        with torch.no_grad():
            dense[0].weight[3, 5] = float("inf")
        fast = convert(dense, weights=torch.float16)
        assert torch.equal(fast[0].weight.float(), dense[0].weight)

    def test_small_weights_become_zeros(self) -> None:
        dense = nn.Sequential(linear())
        with torch.no_grad():
            dense[0].weight.mul_(1e-9)
        fast = convert(dense, weights=torch.float16)
        assert fast[0].nnz == 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_model_that_is_short_already(self, dtype: torch.dtype) -> None:
        dense = nn.Sequential(linear()).to(dtype)
        fast = convert(dense, weights=dtype)
        x = tokens(6, K, integer=True, dtype=dtype)
        with torch.no_grad():
            assert torch.equal(fast(x), dense(x))

    @pytest.mark.parametrize("activations", [None, torch.bfloat16])
    def test_other_kinds(self, activations: torch.dtype | None) -> None:
        """Integers are exact, in a convolution; an LSTM is off by the rounding of its weights."""
        conv = nn.Conv2d(8, 16, 3)
        lstm = nn.LSTM(40, 16)
        with torch.no_grad():
            conv.weight.copy_(weight("random", 16, 72, integer=True).view(16, 8, 3, 3))
            conv.bias.copy_(values(16, integer=True))
            for i, t in enumerate(lstm.parameters()):
                t.copy_(weight("random", *t.shape, seed=i) / 8 if t.dim() > 1 else values(len(t)) / 8)
        x = values(2, 8, 7, 7, integer=True)
        dense = nn.Sequential(conv).eval()
        fast = convert(dense, example_inputs=x, weights=torch.bfloat16, activations=activations)
        assert kinds(fast) == [SparseConv2d]
        recurrent = nn.Sequential(lstm).eval()
        converted = convert(recurrent, weights=torch.bfloat16, activations=activations)
        assert kinds(converted) == [SparseLSTM]
        with torch.no_grad():
            assert torch.equal(fast(x), dense(x))
            sequence = tokens(3, 40)[:, None]
            off = (converted(sequence)[0] - recurrent(sequence)[0]).abs().max()
            assert 0 < off <= 3 * 20 * 4 * EPS[torch.bfloat16]  # steps, weights a row, their products


class TestMoves:
    def converted(self) -> nn.Sequential:
        conv = nn.Conv2d(8, 16, 3).eval()
        with torch.no_grad():
            conv.weight.copy_(weight("random", 16, 72).view(16, 8, 3, 3))
        linear_ = convert(nn.Sequential(linear()).eval())[0]
        conv_ = convert(nn.Sequential(conv), example_inputs=values(1, 8, 5, 5))[0]
        return nn.Sequential(linear_, conv_, PrepackedLinear.from_linear(linear()), nn.Linear(4, 4))

    @pytest.mark.parametrize("move", [lambda m: m.float(), lambda m: m.cpu(), lambda m: m.to(torch.float32)])
    def test_to_where_it_is(self, move: Any) -> None:
        fast = self.converted()
        assert move(fast) is fast

    @pytest.mark.parametrize(
        "move",
        [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.to("meta")],
    )
    def test_elsewhere_is_refused_with_a_way_out(self, move: Any) -> None:
        for part in self.converted()[:3]:
            with pytest.raises(TypeError, match=r"expected to stay torch.float32 on cpu.*convert it again"):
                move(nn.Sequential(part))

    def test_the_way_out(self) -> None:
        fast = densify_(self.converted()).bfloat16()
        assert kinds(convert(fast, targets="0"))[0] is SparseLinear
