"""Activations that a layer does itself where nobody looks on, and nowhere else."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
from convert_helpers import K, N, Script, kinds, linear
from fusion_helpers import EPS, assert_same, chain, converted, ints, square, watch
from generators import tokens, values, weight
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear, convert, convert_, densify_, explain, ops
from sparseinfer.convert import decisions
from sparseinfer.modules import PrepackedLinear
from sparseinfer.modules.activations import activation_name

pytestmark = pytest.mark.usefixtures("script")

ACTIVATIONS = [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.SiLU(inplace=True)]


class Listed(nn.Module):
    """Calls its layer and its activation by a plain list too, where convert_ puts nothing in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = linear(), nn.GELU()
        self.steps = [self.first, self.act]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.first(x)) + self.steps[1](self.steps[0](x)) + self.steps[1](self.first(x))


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's advice to use something else

    @torch.jit.script
    def doubled(x: Tensor) -> Tensor:
        return x + x


class Scripted(nn.Module):
    """A compiled function reads the result too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = linear(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.act(y) + doubled(y)


class Block(nn.Module):
    """`twice` calls the layer without its activation, whatever `forward` does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = square(), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


class Outer(nn.Module):
    """Reaches into its block, for some inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:
            return self.block.fc(x) + self.block.act(x)
        return self.block(x)


class TestLinear:
    @pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
    def test_with_example_inputs(self, activation: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = chain(activation)
        fast = converted(dense)
        assert kinds(fast) == [SparseLinear, type(activation), SparseLinear]
        assert fast[0].activation == "none"
        assert kinds(dense) == [nn.Linear, type(activation), nn.Linear]
        done = watch(monkeypatch)
        for m in (1, 20):
            x = tokens(m, K, integer=True)
            with torch.no_grad():
                got = fast(x)
                assert done == [activation_name(activation)]
                double = copy.deepcopy(dense).double()
                wanted = double(x.double())
                # The sums of integers are exact, the activation is off by 8 eps, then come N products with 4.
                bound = (8 * N + 2 * (N + 1)) * EPS * 4 * double[:1](x.double()).abs().max()
                assert (got - wanted).abs().max() <= (0 if isinstance(activation, nn.ReLU) else bound)
            done.clear()

    def test_every_part_by_itself_is_the_dense_model_s(self) -> None:
        dense = chain(nn.ReLU())
        fast = converted(dense)
        x = ints()
        with torch.no_grad():
            assert bool((dense[0](x) < 0).any())
            assert torch.equal(fast[0](x), dense[0](x))
            assert torch.equal(fast[:2](x), dense[:2](x))
            assert torch.equal(fast[1](dense[0](x)), dense[1](dense[0](x)))

    def test_only_once_where_it_is_called_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = nn.Sequential(linear(), nn.GELU(), nn.GELU()).eval()
        fast = converted(dense)
        assert_same(fast, dense, ints())
        done = watch(monkeypatch)
        fast(ints())
        assert done == ["gelu", "F.gelu"]

    @pytest.mark.parametrize("options", [{"example_inputs": None}, {"fuse": False}])
    def test_what_options_say(self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        dense = chain(nn.ReLU())
        fast = convert(dense, **{"example_inputs": torch.ones(3, K), **options})
        assert kinds(fast) == [SparseLinear, nn.ReLU, SparseLinear]
        assert fast[0].activation == "none"
        assert_same(fast, dense, ints())
        done = watch(monkeypatch)
        fast(ints())
        if "fuse" in options:
            assert done == ["F.relu"]
        else:  # nothing is wrong with it where nothing was run
            assert done in (["relu"], ["F.relu"])

    def test_not_in_a_layer_that_stays_torch_s(self, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        script.ratio = lambda layout, m: 2.0
        dense = chain(nn.ReLU())
        fast = converted(dense)
        assert kinds(fast) == [nn.Linear, nn.ReLU, nn.Linear]
        assert_same(fast, dense, ints())
        done = watch(monkeypatch)
        with torch.no_grad():
            fast(ints())
        assert "relu" not in done

    def test_in_a_prepacked_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not ops.dense.prepack_available(torch.ones(1, 1)):
            pytest.skip("this torch has no oneDNN to reorder a weight with")

        class Prepacked(Script):
            def __call__(self, case: object, layouts: object, m: int) -> object:
                times = super().__call__(case, layouts, m)
                return type(times)(m, {"F.linear": 10.0, "onednn-prepacked": 5.0}, times.sparse)

        script = Prepacked()
        script.ratio = lambda layout, m: 2.0
        monkeypatch.setattr(decisions, "Timer", lambda **options: script)
        dense = chain(nn.ReLU())
        fast = converted(dense)
        assert kinds(fast) == [PrepackedLinear, nn.ReLU, PrepackedLinear]
        x = ints(5)
        with torch.no_grad():
            assert torch.equal(fast(x), dense(x))
            done = watch(monkeypatch)
            fast(x)
            assert done == ["relu"]
            assert kinds(densify_(fast)) == kinds(dense)
            assert torch.equal(fast(x), dense(x))

    @pytest.mark.parametrize("training", [(False, True), (True, False), (True, True)])
    def test_the_mode_of_an_activation_is_nothing_to_it(
        self, training: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, after = training
        dense = chain(nn.ReLU()).train(before)
        fast = convert(dense, example_inputs=torch.ones(3, K)).train(after)
        done = watch(monkeypatch)
        with torch.no_grad():
            got = fast(ints())
            assert done == ["relu"]
            assert torch.equal(got, dense(ints()))

    @pytest.mark.parametrize("dense", [Listed(), Scripted(), Outer()], ids=lambda m: type(m).__name__)
    @pytest.mark.parametrize("function", [convert, convert_])
    def test_where_others_use_the_parts(self, dense: nn.Module, function: Any) -> None:
        dense = copy.deepcopy(dense).eval()
        fast = function(copy.deepcopy(dense), example_inputs=torch.ones(3, K))
        assert any(type(m) is SparseLinear for m in fast.modules())
        for m in (2, 5):
            assert_same(fast, dense, ints(m))

    def test_an_activation_of_two_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        act = nn.ReLU()
        dense = nn.Sequential(linear(), act, linear(K, N), act).eval()
        fast = converted(dense)
        assert [type(module) for module in fast] == [SparseLinear, nn.ReLU] * 2
        assert fast[1] is fast[3]
        assert_same(fast, dense, ints())
        done = watch(monkeypatch)
        fast(ints())
        assert done == ["relu", "relu"]

    def test_in_place_and_back(self) -> None:
        dense = chain(nn.GELU())
        fast = convert_(copy.deepcopy(dense), example_inputs=torch.ones(3, K))
        assert kinds(fast) == [SparseLinear, nn.GELU, SparseLinear]
        assert_same(fast, dense, ints())
        act = fast[1]
        densify_(fast.train())
        assert type(fast) is nn.Sequential
        assert kinds(fast) == kinds(dense)
        assert fast[1] is act
        assert fast[1].training
        x = ints(5)
        with torch.no_grad():
            assert torch.equal(fast.eval()(x), dense(x))

    def test_two_models_do_not_share_a_module(self) -> None:
        dense = chain(nn.GELU())
        fast = converted(dense)
        assert not set(fast.modules()) & set(dense.modules())
        assert densify_(fast)[1] is not dense[1]

    def test_explained(self) -> None:
        rows = explain(converted(chain(nn.GELU("tanh")))).rows
        assert rows[0].reason.endswith(", with gelu_tanh")
        assert "with" not in rows[1].reason

    @pytest.mark.parametrize("shape", [(K,), (1, K), (2, 3, K), (0, K), (2, 0, K)])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        dense = chain(nn.ReLU())
        fast = converted(dense)
        x = ints(8)[: torch.Size(shape).numel() // K].reshape(shape)
        with torch.no_grad():
            assert torch.equal(fast(x), dense(x))

    def test_autocast(self) -> None:
        dense = chain(nn.SiLU())
        fast = converted(dense)
        x = ints()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            got, same = fast(x), dense(x)
        assert got.dtype == same.dtype
        wanted = copy.deepcopy(dense).double()(x.double())
        # Each rounds to bfloat16 after each of three steps, within 2^-9, of sums of N products with 4.
        bound = 3 * 2**-8 * 4 * N * dense[0](x).abs().max()
        assert (got - wanted).abs().max() <= bound
        assert (same - wanted).abs().max() <= bound

    def test_special_values(self) -> None:
        for act in (nn.ReLU(), nn.SiLU(), nn.GELU()):
            dense = nn.Sequential(square(), act).eval()
            fast = converted(dense)
            x = ints()
            x[0, 3], x[1, 5], x[2, 7] = float("nan"), float("inf"), float("-inf")
            with torch.no_grad():
                got, wanted = fast(x), dense(x)
            # A dense layer also spreads them to where the weight is zero.
            rows = torch.tensor([row for row in range(len(x)) if row > 2])
            assert (got[rows] - wanted[rows]).abs().max() <= 8 * EPS * wanted[rows].abs().max()
            reached = dense[0].weight[:, 3] != 0
            assert got[0, reached].isnan().all()
            assert not got[0, ~reached].isnan().any()


def conv_model(dims: int, activation: nn.Module) -> nn.Sequential:
    conv: Any = (nn.Conv1d, nn.Conv2d)[dims - 1](6, 8, 3)
    conv.weight.data = weight("random", 8, 6 * 3**dims, integer=True).view(conv.weight.shape)
    conv.bias.data = values(8, integer=True)
    return nn.Sequential(conv, activation).eval()


class TestConvolutions:
    @pytest.mark.parametrize("dims", [1, 2])
    @pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.SiLU(), nn.GELU("tanh")], ids=str)
    def test_like_linears(self, dims: int, activation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = conv_model(dims, activation)
        fast = convert(dense, example_inputs=values(2, 6, *[9] * dims))
        assert kinds(fast) == [(SparseConv1d, SparseConv2d)[dims - 1], type(activation)]
        for shape in ((2, 6, *[9] * dims), (1, 6, *[11] * dims), (6, *[9] * dims), (0, 6, *[9] * dims)):
            x = values(*shape, integer=True)
            assert_same(fast, dense, x) if x.numel() else None
            assert fast(x).shape == dense(x).shape
        done = watch(monkeypatch)
        fast(values(2, 6, *[9] * dims))
        assert done == [activation_name(activation)]


@pytest.mark.parametrize("function", [F.gelu, functools.partial(F.gelu, approximate="tanh")])
def test_an_activation_held_as_a_function(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.function = square(), function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.fc(x))

    dense = Held().eval()
    fast = converted(dense)
    assert_same(fast, dense, ints())
    done = watch(monkeypatch)
    fast(ints())
    assert done == [activation_name(function)]
