"""precision="bf16": layers may be computed in bfloat16, and get what is fastest; times are scripted."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from convert_helpers import K, Script, kinds, linear
from fold_helpers import fold
from fusion_helpers import batch_norm
from generators import tokens, values, weight
from torch import nn

from sparseinfer import ConvertOptions, SparseConv2d, SparseLinear, convert, densify_, explain, latency_table
from sparseinfer.convert.candidates.choose import candidates_of
from sparseinfer.convert.options import PRECISIONS
from sparseinfer.convert.survey.survey import products_of, survey_of
from sparseinfer.convert.timing import timer
from sparseinfer.modules import FoldedLayer, PrepackedLinear
from sparseinfer.ops import describe
from sparseinfer.ops.dense import PLAIN, PREPACKED, PREPACKED_BF16, multiplies_bf16
from sparseinfer.ops.names import STORAGES

BF16, F32 = torch.bfloat16, torch.float32

pytestmark = pytest.mark.usefixtures("script")


def bf16(dense: nn.Module, **options: Any) -> Any:
    return convert(dense, precision="bf16", **options)


def fastest(*storages: str, other: float = 0.8) -> Any:
    """A script by which layouts of these storages take half the dense time."""
    return lambda layout, m: 0.5 if layout.storage in storages else other


def layer(sparsity: float = 0.8) -> nn.Sequential:
    dense = nn.Linear(200, 96)
    with torch.no_grad():
        dense.weight.copy_(weight("random", 96, 200, sparsity))
        dense.bias.copy_(values(96))
    return nn.Sequential(dense).eval()


def timed(dense: nn.Module, **options: Any) -> Any:
    """The candidates of the model's only product."""
    survey = survey_of(dense, {"0": dense[0]}, None, named=False)
    (product,) = products_of(dense, survey, fuse=True, fold=False)
    return candidates_of(product, survey.recording, ConvertOptions(**options))[0]


def storages(fast: SparseLinear) -> set[str]:
    return {describe(packed).storage for packed in fast._packings()}


class TestCandidates:
    def test_of_every_dtype_side_by_side(self, script: Script) -> None:
        bf16(layer(), tokens=(1, 16))
        for layouts, _ in script.calls:
            x_dtypes = {STORAGES[layout.storage].x_dtype for layout in layouts}
            holds = {STORAGES[layout.storage].holds for layout in layouts}
            assert {(BF16,), STORAGES["f32"].holds} <= holds
            assert None in x_dtypes
        assert {layout.storage for layout in script.calls[0][0]} >= {"f32", "wbf16"}

    def test_dense_ways(self) -> None:
        found, kept = timed(layer(), precision="bf16"), timed(layer())
        assert set(found.dense_names) - set(kept.dense_names) == (
            {PREPACKED_BF16} if multiplies_bf16(layer()[0].weight) else set()
        )
        assert found.dense(4).keys() == set(found.dense_names)

    @pytest.mark.parametrize("tokens_", [1, 16])
    def test_what_is_timed_is_what_the_layer_does(self, tokens_: int) -> None:
        found = timed(layer(), precision="bf16")
        layouts = [layout for variant in found.variants for layout in variant.layouts(tokens_)]
        us = timer.time_candidates(found, dict.fromkeys(layouts), tokens_).us
        assert set(us) == {*found.dense_names, *map(str, layouts)}
        for name, make in found.dense(tokens_).items():
            result: Any = make()()
            assert (result.shape, result.dtype) == ((tokens_, 96), F32), name

    @pytest.mark.parametrize("dtype", [torch.float16, BF16])
    def test_a_model_that_is_short_already_keeps_its_dtype(self, script: Script, dtype: torch.dtype) -> None:
        dense = nn.Sequential(linear()).to(dtype)
        convert(dense)
        kept = script.calls.copy()
        script.calls.clear()
        bf16(dense)
        assert script.calls == kept

    def test_predictions_know_them(self) -> None:
        found = timed(nn.Sequential(linear(3072, 768)), precision="bf16")
        us = {name: found.predict(name, 64) for name in found.dense_names}
        assert all(0 < time < float("inf") for time in us.values())
        if PREPACKED_BF16 in us:
            assert us[PREPACKED_BF16] < us[PREPACKED]
        for variant in found.variants:
            assert min(found.predict(layout, 64) for layout in variant.layouts(64)) < float("inf")

    def test_a_table_of_latencies_takes_it(self, script: Script) -> None:
        script.ratio = lambda layout, m: 0.3 if "bf16" in layout.storage else 0.8
        dense, options = layer(), {"sparsities": (0.8,), "budget_s": 0.0}
        shorter = latency_table(dense, torch.ones(1, 200), precision="bf16", measure=False, **options)
        kept = latency_table(dense, torch.ones(1, 200), measure=False, **options)
        assert shorter.us["0"].keys() == kept.us["0"].keys()


class TestDecision:
    def test_dense_in_bfloat16(self, script: Script) -> None:
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED: 9.0, PREPACKED_BF16: 4.0}
        dense = layer()
        fast = bf16(dense)
        assert kinds(fast) == [PrepackedLinear]
        assert (fast[0].dtype, fast[0].weight_dtype) == (F32, BF16)
        (row,) = explain(fast).rows
        assert (row.decision, row.dtype, row.dense_us[0]) == ("prepacked", "bfloat16", 4.0)
        assert row.nbytes == 96 * 200 * 2 + 96 * 4
        assert "bfloat16" in str(explain(fast))
        assert torch.equal(densify_(fast)[0].weight, dense[0].weight.to(BF16).float())

    @pytest.mark.parametrize(
        ("storage", "dtype"), [("wbf16", "bfloat16 x float32"), ("bf16", "bfloat16"), ("f32", "float32")]
    )
    def test_sparse(self, script: Script, storage: str, dtype: str) -> None:
        script.ratio = fastest(storage)
        dense = layer()
        if storage not in {
            layout.storage for v in timed(dense, precision="bf16").variants for layout in v.layouts(1)
        }:
            pytest.skip(f"no planned kernel for {storage} at this level")
        fast = bf16(dense, tokens=(1,))
        assert kinds(fast) == [SparseLinear]
        assert storages(fast[0]) == {storage}
        assert explain(fast).rows[0].dtype == dtype

    def test_all_packings_of_a_layer_hold_the_same_weights(self, script: Script) -> None:
        script.ratio = lambda layout, m: 0.3 if (layout.storage == "f32") == (m > 4) else 0.6
        fast = bf16(layer(), tokens=(1, 128), memory="speed")
        assert len({describe(packed).dtype for packed in fast[0]._packings()}) == 1
        assert "wbf16" in storages(fast[0])

    @pytest.mark.parametrize(("share", "rounds"), [(0.985, False), (0.96, True)])
    def test_nothing_is_rounded_that_does_not_pay(self, script: Script, share: float, rounds: bool) -> None:
        script.ratio = lambda layout, m: 0.5 * (1.0 if layout.storage == "f32" else share)
        assert storages(bf16(layer(), tokens=(1,))[0]) != {"f32"} or not rounds
        assert (explain(bf16(layer(), tokens=(1,))).rows[0].dtype == "float32") == (not rounds)
        script.ratio = lambda layout, m: 2.0
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED: 9.0, PREPACKED_BF16: 9.0 * share}
        assert (explain(bf16(layer())).rows[0].dtype == "bfloat16") == rounds

    def test_where_all_lose_somewhere_the_least_loss(self, script: Script) -> None:
        """Over the best dense way of each token count: one way serves all of them."""
        script.ratio = lambda layout, m: 0.7
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED_BF16: 3.0 if m == 16 else 30.0}
        fast = bf16(layer(), tokens=(16, 128))
        assert kinds(fast) == [SparseLinear]  # 2.3 times as long, instead of 3
        assert explain(fast).rows[0].dense_us == (3.0, 10.0)
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED_BF16: 3.0 if m == 16 else 12.0}
        assert kinds(bf16(layer(), tokens=(16, 128))) == [PrepackedLinear]  # 1.2 times

    def test_too_dense_for_sparse_kernels(self, script: Script) -> None:
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED_BF16: 4.0}
        assert kinds(bf16(layer(0.0))) == [PrepackedLinear]

    def test_compact(self) -> None:
        dense = layer()
        fast = bf16(dense, memory="compact")
        assert storages(fast[0]) == {"wbf16"}
        assert fast[0].nbytes < convert(dense, memory="compact")[0].nbytes

    def test_a_weight_out_of_range_stays_float32(self) -> None:
        dense = layer()
        dense[0].weight.data[3, 5] = torch.finfo(F32).max
        fast = bf16(dense)
        assert storages(fast[0]) == {"f32"}
        assert explain(fast).rows[0].dtype == "float32"


class TestResults:
    @pytest.mark.parametrize("way", ["f32", "wbf16", "bf16", "dense"])
    def test_of_every_kind(self, script: Script, way: str) -> None:
        """Integers are exact in any dtype."""
        script.ratio = fastest(way, other=2.0)
        if way == "dense":
            script.dense = lambda m: {PLAIN: 10.0, PREPACKED_BF16: 4.0}
        dense, x = nn.Sequential(linear()).eval(), tokens(20, K, integer=True)
        fast = bf16(dense, example_inputs=x)
        with torch.no_grad():
            assert torch.equal(fast(x), dense(x))
            assert torch.equal(copy.deepcopy(fast)(x), dense(x))

    def test_a_convolution(self, script: Script) -> None:
        script.ratio = lambda layout, m: 0.5
        conv = nn.Conv2d(8, 16, 3).eval()
        with torch.no_grad():
            conv.weight.copy_(weight("random", 16, 72, integer=True).view(16, 8, 3, 3))
        x = values(2, 8, 7, 7, integer=True)
        fast = bf16(nn.Sequential(conv), example_inputs=x)
        assert kinds(fast) == [SparseConv2d]
        with torch.no_grad():
            assert (fast(x) - conv(x)).abs().max() <= 1e-5 * conv(x).abs().max()

    @pytest.mark.parametrize(("precision", "storage"), [("int8", "i8"), ("int8-weights", "wi8")])
    def test_a_convolution_in_int8(self, script: Script, precision: str, storage: str) -> None:
        """Images are rounded where that is allowed."""
        script.ratio = fastest(storage)
        conv = nn.Conv2d(16, 16, 3, padding=1, groups=2).eval()
        with torch.no_grad():
            conv.weight.copy_(weight("random", 16, 72).view(16, 8, 3, 3))
        x = values(2, 16, 7, 7)
        fast: Any = convert(nn.Sequential(conv), precision=precision, example_inputs=x)
        assert storages(fast[0]) == {storage}
        with torch.no_grad():
            assert (fast(x) - conv(x)).abs().max() <= 0.05 * conv(x).abs().max()

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.MultiheadAttention])
    def test_composed_layers(self, script: Script, kind: Any) -> None:
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED_BF16: 1.0}
        dense = nn.ModuleList([kind(32, 32) if kind is not nn.MultiheadAttention else kind(32, 4)]).eval()
        fast = bf16(dense, targets="0")
        assert {row.dtype for row in explain(fast).rows} == {"bfloat16"}
        x = values(5, 2, 32)
        args = (x, x, x) if kind is nn.MultiheadAttention else (x,)
        with torch.no_grad():
            assert (fast[0](*args)[0] - dense[0](*args)[0]).norm() < 0.02 * dense[0](*args)[0].norm()

    def test_a_folded_batch_norm_leaves_the_layer_by_itself_exact(self, script: Script) -> None:
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED: 8.0, PREPACKED_BF16: 1.0}
        dense = nn.Sequential(layer()[0], batch_norm(nn.BatchNorm1d, 96)).eval()
        x = values(7, 200)
        fast = fold(dense, x, precision="bf16")
        assert type(fast[0]) is FoldedLayer
        assert (fast[0].plain.weight_dtype, fast[0].folded.weight_dtype) == (F32, BF16)
        with torch.no_grad():
            assert (fast(x) - dense(x)).norm() < 0.01 * dense(x).norm()
        assert torch.equal(densify_(fast)[0].weight, dense[0].weight)

    def test_the_tolerance_is_that_of_the_dtype(self, script: Script) -> None:
        """No warning, and what is fused stays fused."""
        script.dense = lambda m: {PLAIN: 10.0, PREPACKED_BF16: 1.0}
        dense = nn.Sequential(layer()[0], nn.ReLU()).eval()
        x = values(50, 200)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fast = bf16(dense, example_inputs=x)
        with torch.no_grad():
            assert (fast(x) - dense(x)).norm() > 1e-3 * dense(x).norm()
        assert "with relu" in explain(fast).rows[0].reason


class TestOptions:
    def test_words(self) -> None:
        assert ConvertOptions().precision == "keep"
        for word in PRECISIONS:
            assert ConvertOptions(precision=word).precision == word
        for wrong in ("fp32", torch.bfloat16, None, ["bf16"]):
            with pytest.raises(ValueError, match="precision: expected 'keep' or 'bf16'"):
                ConvertOptions(precision=wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize("given", [{"weights": BF16}, {"weights": BF16, "activations": BF16}])
    def test_one_way_to_say_it(self, given: dict[str, Any]) -> None:
        with pytest.raises(
            ValueError, match=r"weights: expected None, got .*\(precision='bf16' says what may"
        ):
            ConvertOptions(precision="bf16", **given)
        assert ConvertOptions(precision="keep", **given).roundings == (
            tuple(given.get(n) for n in ("weights", "activations")),
        )

    def test_exact(self) -> None:
        for options in (ConvertOptions(precision="bf16"), ConvertOptions(weights=BF16)):
            assert options.exact().roundings == ((None, None),)
