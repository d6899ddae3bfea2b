"""Batch norms folded into the layer before them: only where that is the same, asked at every call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from convert_helpers import K, N, Script, kinds, linear
from copies import by_file, by_pickle
from fold_helpers import X, assert_close, conv_model, fold, folds
from fusion_helpers import EPS, batch_norm, folding_bound
from generators import tokens, values, weight
from torch import Tensor, nn

from sparseinfer import SparseConv1d, SparseConv2d, SparseLinear, convert, convert_, densify_, explain
from sparseinfer.modules import FoldedLayer
from sparseinfer.ops import parse_plan

pytestmark = pytest.mark.usefixtures("script")


class TestFolded:
    @pytest.mark.parametrize("dims", [1, 2])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("affine", [True, False])
    def test_convolutions(self, dims: int, bias: bool, affine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = conv_model(dims, bias=bias, affine=affine)
        x = values(2, 6, *[9] * dims)
        fast = fold(dense, x)
        assert kinds(fast) == [FoldedLayer, type(dense[1]), nn.ReLU]
        assert type(fast[0].folded) is (SparseConv1d, SparseConv2d)[dims - 1]
        assert fast[1] is not dense[1]
        assert folding_bound(dense[0], dense[1], x) < 1e-3
        assert_close(fast, dense, x)
        assert folds(fast, x, monkeypatch)

    def test_of_a_linear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = nn.Sequential(linear(), batch_norm(nn.BatchNorm1d, N), nn.SiLU()).eval()
        x = tokens(5, K)
        fast = fold(dense, x)
        assert kinds(fast) == [FoldedLayer, nn.BatchNorm1d, nn.SiLU]
        assert type(fast[0].folded) is SparseLinear
        assert_close(fast, dense, x)
        assert folds(fast, x, monkeypatch)

    def test_with_the_activation_in_the_same_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fast = fold(conv_model())
        names: list[str] = []
        activated = SparseConv2d.activated
        monkeypatch.setattr(
            SparseConv2d, "activated", lambda self, x, name: names.append(name) or activated(self, x, name)
        )
        fast(X)
        assert names == ["relu"]

    def test_the_layer_by_itself_multiplies_as_it_was_planned(self, script: Script) -> None:
        """Networks call it: with the smallest packing they were half as fast."""
        dense = conv_model()
        tried: set[str] = set()
        for packing in ("rowgroup", "rowlist", "bsr"):
            script.ratio = lambda layout, m, packing=packing: 0.1 if layout.packing == packing else 0.5
            fast = fold(dense)
            (bucket,) = parse_plan(fast[0].plain.plan)
            assert fast[0].plain.plan == fast[0].folded.plan
            tried.add(bucket.kernel)
        assert len(tried) > 1
        compact = fold(dense, memory="compact")[0]
        assert {parse_plan(each.plan)[0].kernel for each in (compact.plain, compact.folded)} == {
            "spmm_bitmap_f32_t64"
        }

    def test_a_layer_that_stays_dense_keeps_its_norm(self, script: Script) -> None:
        """Its weight may be written to, and a product would not know."""
        script.ratio = lambda layout, m: 2.0
        dense = conv_model()
        fast = fold(dense)
        assert kinds(fast) == kinds(dense)
        assert_close(fast, dense, X)

    def test_only_if_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = conv_model()
        fast = convert(dense, example_inputs=X)
        assert kinds(fast) == [SparseConv2d, nn.BatchNorm2d, nn.ReLU]
        fast = fold(dense, fuse=False)
        assert kinds(fast) == [FoldedLayer, nn.BatchNorm2d, nn.ReLU]
        assert folds(fast, X, monkeypatch)
        assert_close(fast, dense, X)
        assert kinds(convert(dense, fold_batch_norm=True, targets=["0"])) == [
            nn.Conv2d,
            nn.BatchNorm2d,
            nn.ReLU,
        ]

    def test_explained(self) -> None:
        (row,) = (row for row in explain(fold(conv_model())).rows if row.layer == "0")
        assert row.reason.endswith(", with its batch norm and relu")
        (row,) = (row for row in explain(fold(conv_model(), fuse=False)).rows if row.layer == "0")
        assert row.reason.endswith(", with its batch norm")

    @pytest.mark.parametrize("name", ["weight", "running_var"])
    def test_zeros(self, name: str) -> None:
        dense = conv_model()
        getattr(dense[1], name).data[[0, 3]] = 0
        assert_close(fold(dense), dense, X)

    def test_what_is_not_finite_is_left(self) -> None:
        dense = conv_model()
        dense[1].eps = 0.0
        dense[1].running_var[1] = 0.0
        fast = fold(dense)
        assert kinds(fast)[0] is SparseConv2d
        with torch.no_grad():
            got, wanted = fast(X), dense(X)
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.isinf(), wanted.isinf())

    def test_rounded_weights(self) -> None:
        """`weights=bfloat16` rounds the product, by 2^-9 of each weight; what was asked for."""
        dense = conv_model()
        fast = fold(dense, weights=torch.bfloat16)
        with torch.no_grad():
            wanted, got = copy.deepcopy(dense).double()(X.double()), fast(X)
        error = (got - wanted).abs().max()
        assert folding_bound(dense[0], dense[1], X) < error
        assert error <= 2**-9 / EPS * folding_bound(dense[0], dense[1], X)

    def test_half_precision(self) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            dense = conv_model().to(dtype)
            x = X.to(dtype)
            fast = fold(dense, x)
            with torch.no_grad():
                wanted, got, same = copy.deepcopy(dense).double()(x.double()), fast(x), dense(x)
            assert got.dtype == dtype
            # Weight, bias and result are rounded once each, as the dense model's results are, twice.
            assert (got - wanted).norm() <= 4 * (same - wanted).norm() + torch.finfo(
                dtype
            ).eps * wanted.norm()


class Between(nn.Sequential):
    """The norm sees the layer's result with its dimensions swapped."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).transpose(1, 2))


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y = self[0](x)
        return self[1](y) + y


class Twice(nn.Sequential):
    """The layer is also called alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x)) + self[0](x)


class Hidden(nn.Sequential):
    """The layer is also called by a plain list."""

    def __init__(self, *steps: nn.Module) -> None:
        super().__init__(*steps)
        self.own = [steps[0]]

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x)) + self.own[0](x)


class Chosen(nn.Sequential):
    """Long inputs go past the norm, and short ones past the layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self[0](x)
        return self[1](y) if len(x) < 4 else y


class TestOtherDimensions:
    """The channels of a batch norm are dimension 1, whatever the layer's are."""

    @pytest.mark.parametrize("length", [7, N])
    def test_linear_of_three_dimensions(self, length: int) -> None:
        """[b, l, n]: the norm is over l, also where l equals n."""
        dense = nn.Sequential(linear(), batch_norm(nn.BatchNorm1d, length)).eval()
        x = values(3, length, K)
        assert_close(fold(dense, x), dense, x)

    def test_linear_planned_with_two_and_called_with_three(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = nn.Sequential(linear(), batch_norm(nn.BatchNorm1d, N)).eval()
        fast = fold(dense, tokens(5, K))
        for shape in ((5, K), (3, N, K), (1, N, K), (1, K), (0, K)):
            x = values(*shape)
            if x.numel():
                assert_close(fast, dense, x)
            assert fast(x).shape == dense(x).shape
            assert folds(fast, x, monkeypatch) is (len(shape) == 2)
        with torch.no_grad(), pytest.raises(ValueError, match="expected 2D or 3D input"):
            fast(values(K))
        with torch.no_grad(), pytest.raises(RuntimeError, match="running_mean should contain"):
            fast(values(3, N + 1, K))

    def test_unbatched_convolution(self) -> None:
        """conv1d of [c, l] gives [n, l'], and a batch norm takes l' for channels: here equal to n."""
        conv = nn.Conv1d(6, 8, 3)
        conv.weight.data = weight("random", 8, 18).view(8, 6, 3)
        dense = nn.Sequential(conv, batch_norm(nn.BatchNorm1d, 8)).eval()
        batched, unbatched = values(2, 6, 10), values(6, 10)
        for example in (batched, unbatched):
            fast = fold(dense, example)
            for x in (batched, unbatched, values(1, 6, 30)):
                assert_close(fast, dense, x)

    def test_unbatched_images_are_refused_by_the_norm(self) -> None:
        fast = fold(conv_model())
        with torch.no_grad(), pytest.raises(ValueError, match="expected 4D input"):
            fast(values(6, 9, 9))

    def test_a_transpose_between(self) -> None:
        conv = nn.Conv1d(6, 8, 3)
        conv.weight.data = weight("random", 8, 18).view(8, 6, 3)
        dense = Between(conv, batch_norm(nn.BatchNorm1d, 8)).eval()
        x = values(2, 6, 10)
        fast = fold(dense, x)
        assert_close(fast, dense, x)
        assert type(fast[0]) is SparseConv1d

    def test_a_norm_of_another_size(self) -> None:
        dense = nn.Sequential(linear(), batch_norm(nn.BatchNorm1d, 7)).eval()
        fast = fold(dense, values(3, 7, K))
        assert kinds(fast) == [SparseLinear, nn.BatchNorm1d]


@pytest.mark.parametrize("kind", [Skip, Twice, Hidden, Chosen])
@pytest.mark.parametrize("function", [convert, convert_])
def test_others_call_the_layer_too(kind: Any, function: Any) -> None:
    dense = kind(*conv_model(act=False)).eval()
    fast = function(copy.deepcopy(dense), example_inputs=X, fold_batch_norm=True)
    for m in (1, 2, 5):
        assert_close(fast, dense, values(m, 6, 9, 9), times=2)


class TestDensify:
    @pytest.mark.parametrize("function", [convert, convert_])
    def test_bit_for_bit(self, function: Any) -> None:
        dense = conv_model()
        fast = function(copy.deepcopy(dense), example_inputs=X, fold_batch_norm=True)
        assert type(fast[0]) is FoldedLayer
        densify_(fast)
        assert kinds(fast) == kinds(dense)
        assert type(fast) is nn.Sequential
        state, wanted = fast.state_dict(), dense.state_dict()
        assert list(state) == list(wanted)
        assert all(torch.equal(state[name], t) for name, t in wanted.items())
        with torch.no_grad():
            assert torch.equal(fast(X), dense(X))
        assert not set(fast.parameters()) & set(dense.parameters())

    def test_rounded_weights_do_not_reach_it(self) -> None:
        """Only the product is of the shorter dtype: the layer by itself is kept as it was."""
        dense = conv_model()
        fast = densify_(fold(dense, weights=torch.bfloat16))
        assert torch.equal(fast[0].weight, dense[0].weight)
        assert torch.equal(fast[0].bias, dense[0].bias)


COPIES: dict[str, Any] = {
    "deepcopy": copy.deepcopy,
    "pickle": by_pickle,
    "torch.save": by_file,
}


class TestCopies:
    @pytest.mark.parametrize("how", COPIES)
    def test_know_their_own_norm(self, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
        dense = conv_model()
        fast = fold(dense)
        twin = COPIES[how](fast)
        assert twin[0].batch_norm is twin[1]
        assert twin[1] is not fast[1]
        assert folds(twin, X, monkeypatch)
        assert_close(twin, dense, X)
        for module in (twin, dense):
            module[1].running_mean.add_(1)
        assert not folds(twin, X, monkeypatch)
        assert folds(fast, X, monkeypatch)
        assert_close(twin, dense, X)

    def test_of_the_layer_alone(self) -> None:
        dense = conv_model()
        alone = copy.deepcopy(fold(dense)[0])
        with torch.no_grad():
            assert torch.allclose(alone(X), dense[0](X), atol=folding_bound(dense[0], dense[1], X))

    def test_converted_again(self) -> None:
        dense = conv_model()
        with pytest.warns(UserWarning, match="got none of"):
            again = fold(fold(dense))
        assert_close(again, dense, X)
        assert kinds(densify_(again)) == kinds(dense)
