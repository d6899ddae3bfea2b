"""Layers other than nn.Linear: convolutions, attention, recurrent layers, transposed Linears."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attention_helpers import HEADS, E, assert_same, bound
from convert_helpers import K, N, Script, assert_restored, kinds, linear, pruned
from generators import tokens, values
from torch import Tensor, nn
from torch.nn.utils import prune

from sparseinfer import (
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    SparseMultiheadAttention,
    convert,
    convert_,
    explain,
    ops,
)
from sparseinfer.convert import decisions as decisions_module
from sparseinfer.convert.timing.times import Times
from sparseinfer.modules import PrepackedLinear, SparseGRU, SparseLSTM, SparseRNN

EPS = torch.finfo(torch.float32).eps


pytestmark = pytest.mark.usefixtures("script", "no_grad")


def decisions(fast: nn.Module) -> dict[str, str]:
    return {row.layer: row.decision for row in explain(fast).rows}


class TestConvolutions:
    @pytest.mark.parametrize("side", [3, 5, 12])  # 1, 9 and 100 pixels
    @pytest.mark.parametrize("memory", ["speed", 1.0, 0.6, "compact"])
    @pytest.mark.parametrize("dims", [1, 2])
    def test_exact(self, dims: int, memory: Any, side: int) -> None:
        dense = nn.Sequential(pruned((nn.Conv1d, nn.Conv2d)[dims - 1](8, 16, 3), integer=True))
        x = values(2, 8, *[side] * dims, integer=True)
        fast = convert(dense, example_inputs=x, memory=memory)
        assert kinds(fast) == [(SparseConv1d, SparseConv2d)[dims - 1]]
        assert torch.equal(fast(x), dense(x))
        assert explain(fast).rows[0].tokens == (2 * (side - 2) ** dims,)
        assert_restored(fast, dense)

    @pytest.mark.parametrize(
        "options",
        [
            {"stride": 2, "padding": 1},
            {"padding": "same", "dilation": 2},
            {"groups": 2},
            {"padding": 1, "padding_mode": "reflect"},
            {"bias": False},
        ],
        ids=str,
    )
    def test_options_are_kept(self, options: dict[str, Any]) -> None:
        dense = nn.Sequential(pruned(nn.Conv2d(8, 16, 3, **options), integer=True))
        x = values(2, 8, 7, 7, integer=True)
        fast = convert(dense, example_inputs=x)
        assert kinds(fast) == [SparseConv2d]
        assert torch.equal(fast(x), dense(x))
        assert torch.equal(fast(x[0]), dense(x[0]))
        assert_restored(fast, dense)

    @pytest.mark.parametrize("memory", [1.0, "compact"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype: torch.dtype, memory: Any) -> None:
        dense = nn.Sequential(pruned(nn.Conv2d(8, 16, 3), integer=True)).to(dtype)
        x = values(1, 8, 4, 4, integer=True, dtype=dtype)
        fast = convert(dense, example_inputs=x, memory=memory)
        assert kinds(fast) == [SparseConv2d]
        assert fast(x).dtype == dtype
        assert torch.equal(fast(x), dense.float()(x.float()).to(dtype))

    def test_without_example_inputs(self) -> None:
        fast = convert(nn.Sequential(pruned(nn.Conv2d(8, 16, 3)), pruned(nn.Conv1d(8, 16, 3))))
        assert kinds(fast) == [nn.Conv2d, nn.Conv1d]
        assert {row.reason for row in explain(fast).rows} == {
            "no example input reached it: the size of its maps is not known"
        }

    def test_depthwise(self) -> None:
        dense = nn.Sequential(pruned(nn.Conv2d(8, 8, 3, groups=8)))
        fast = convert(dense, example_inputs=values(1, 8, 9, 9))
        assert kinds(fast) == [nn.Conv2d]
        assert explain(fast).rows[0].reason.startswith("it is depthwise")

    def test_other_dimensions_are_not_looked_at(self) -> None:
        dense = nn.Sequential(pruned(nn.Conv3d(4, 4, 1)), pruned(nn.ConvTranspose2d(4, 4, 3)), linear())
        fast = convert(dense)
        assert kinds(fast) == [nn.Conv3d, nn.ConvTranspose2d, SparseLinear]

    def test_unchanged_where_dense_wins(self, script: Script) -> None:
        script.ratio = lambda layout, m: 2.0
        dense = nn.Sequential(pruned(nn.Conv2d(8, 16, 3)))
        fast = convert(dense, example_inputs=values(1, 8, 9, 9))
        assert kinds(fast) == [nn.Conv2d]
        assert fast[0].weight.data_ptr() != dense[0].weight.data_ptr()


class TestTransposedLinear:
    def model(self) -> nn.Sequential:
        utils = pytest.importorskip("transformers.pytorch_utils", reason="transformers is not installed")
        layer = utils.Conv1D(N, K)
        layer.weight.copy_(linear().weight.t())
        layer.bias.copy_(values(N, integer=True))
        return nn.Sequential(layer).eval()

    def test_there_and_back(self) -> None:
        dense = self.model()
        fast = convert(dense, example_inputs=torch.ones(2, 3, K))
        assert kinds(fast) == [SparseLinear]
        row = explain(fast).rows[0]
        assert (row.shape, row.tokens) == ((N, K), (6,))
        x = tokens(7, K, integer=True)
        assert torch.equal(fast(x), dense(x))
        twin = copy.deepcopy(fast)
        for model in (fast, twin):
            assert_restored(model, dense)
            assert (model[0].nf, model[0].nx) == (N, K)
            assert model[0].weight.is_contiguous()
            assert torch.equal(model(x), dense(x))


def mha_inputs() -> Tensor:
    return values(3, 5, E) / 2


class TestAttention:
    def attention(self, **options: Any) -> nn.ModuleDict:
        return nn.ModuleDict({"a": pruned(nn.MultiheadAttention(E, HEADS, **options), scale=0.25)}).eval()

    @pytest.mark.parametrize(
        "options",
        [{"batch_first": True}, {}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}],
        ids=str,
    )
    def test_exact_weights_and_close_results(self, options: dict[str, Any]) -> None:
        dense = self.attention(**options)
        for name, parameter in dense.named_parameters():
            if "bias_" in name:  # [1, 1, e]: no matrix
                parameter.copy_(values(*parameter.shape))
        fast = convert(dense)
        assert type(fast["a"]) is SparseMultiheadAttention
        assert decisions(fast) == {"a:in_proj": "sparse", "a:out_proj": "sparse"}
        x = mha_inputs()
        assert_same(fast["a"], dense["a"], (x, x, x))
        assert_restored(fast, dense)

    def test_keys_of_another_size(self) -> None:
        fast = convert(self.attention(kdim=8))
        assert type(fast["a"]) is nn.MultiheadAttention
        assert explain(fast).rows[0].reason == "its keys or values have a size of their own"

    def test_a_part_that_stays_dense_is_a_copy(self) -> None:
        dense = self.attention()
        dense["a"].out_proj.weight.copy_(values(E, E))
        fast = convert(dense)
        assert decisions(fast) == {"a:in_proj": "sparse", "a:out_proj": "dense"}
        fast["a"].out_proj.weight.zero_()
        assert dense["a"].out_proj.weight.any()

    def test_pruned_by_torch(self) -> None:
        dense = self.attention()
        dense["a"].in_proj_weight.copy_(values(3 * E, E))
        with torch.enable_grad():
            prune.random_unstructured(dense["a"], "in_proj_weight", amount=0.8)
            prune.random_unstructured(dense["a"].out_proj, "weight", amount=0.3)
        fast = convert(dense)
        assert decisions(fast)["a:in_proj"] == "sparse"
        x = mha_inputs()
        assert (fast["a"](x, x, x)[0] - dense["a"](x, x, x)[0]).abs().max() <= 2 * bound(
            dense["a"], (x, x, x)
        )
        mask = dense["a"].in_proj_weight_mask
        assert torch.equal(fast["a"].in_proj.weight != 0, mask.bool())

    def test_tied_to_another_layer(self) -> None:
        dense = self.attention()
        dense["b"] = nn.Linear(E, E)
        dense["b"].weight = dense["a"].out_proj.weight
        fast = convert(dense)
        assert type(fast["a"]) is nn.MultiheadAttention
        assert explain(fast).rows[0].reason == "its out_proj.weight is shared with 'b'"

    @pytest.mark.parametrize("function", [convert, convert_])
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    def test_in_an_encoder(self, function: Any) -> None:
        dense = nn.TransformerEncoder(
            pruned(nn.TransformerEncoderLayer(E, HEADS, 32, batch_first=True), scale=0.25), 2
        ).eval()
        assert dense.use_nested_tensor
        x = mha_inputs()
        padding = torch.arange(5) >= torch.tensor([[5], [2], [3]])
        wanted = dense(x), dense(x, src_key_padding_mask=padding)[~padding]
        fast = function(copy.deepcopy(dense), example_inputs=x)
        assert not fast.use_nested_tensor
        assert set(decisions(fast).values()) == {"sparse"}
        got = fast(x), fast(x, src_key_padding_mask=padding)[~padding]
        for a, b in zip(got, wanted, strict=True):
            assert (a - b).abs().max() <= 2 * 16**2 * 2 * EPS * (E + 1)  # as in test_transformers.py
        assert dense.use_nested_tensor
        assert_restored(fast, dense)
        assert fast.use_nested_tensor
        assert torch.equal(fast(x), wanted[0])

    def test_an_encoder_that_stays_dense_keeps_its_fast_path(self, script: Script) -> None:
        script.ratio = lambda layout, m: 2.0
        layer = pruned(nn.TransformerEncoderLayer(E, HEADS, 32, batch_first=True))
        fast = convert(nn.TransformerEncoder(layer, 1).eval(), example_inputs=mha_inputs())
        assert fast.use_nested_tensor
        assert type(fast.layers[0].self_attn) is nn.MultiheadAttention


class TestRecurrent:
    @pytest.mark.parametrize(
        ("dense_kind", "sparse_kind"), [(nn.LSTM, SparseLSTM), (nn.GRU, SparseGRU), (nn.RNN, SparseRNN)]
    )
    @pytest.mark.parametrize(
        "options",
        [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}],
        ids=str,
    )
    def test_there_and_back(self, dense_kind: Any, sparse_kind: Any, options: dict[str, Any]) -> None:
        dense = nn.ModuleDict({"r": pruned(dense_kind(12, 16, **options), scale=0.25)}).eval()
        x = values(4, 3, 12)
        fast = convert(dense)
        assert type(fast["r"]) is sparse_kind
        assert set(decisions(fast).values()) == {"sparse"}
        got, wanted = fast["r"](x), dense["r"](x)
        # States are below 1; each of the 8 steps and layers adds the rounding of 28 terms of at most 2.
        assert (got[0] - wanted[0]).abs().max() <= 8 * 2 * EPS * (12 + 16 + 2) * 2
        assert_restored(fast, dense)

    def test_token_counts(self) -> None:
        class Runs(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.r = pruned(nn.LSTM(12, 16, batch_first=True))

            def forward(self, x: Tensor) -> Tensor:
                return self.r(x)[0]

        rows = explain(convert(Runs().eval(), example_inputs=values(3, 7, 12))).rows
        assert [(row.layer, row.tokens) for row in rows] == [("r:ih_l0", (21,)), ("r:hh_l0", (3,))]

    def test_parts_that_stay_dense_are_copies(self) -> None:
        dense = nn.ModuleDict({"r": pruned(nn.LSTM(12, 16))}).eval()
        dense["r"].weight_hh_l0.copy_(values(64, 16))
        fast = convert(dense)
        assert decisions(fast) == {"r:ih_l0": "sparse", "r:hh_l0": "dense"}
        before = dense["r"].weight_hh_l0.clone()
        for parameter in fast.parameters():
            parameter.zero_()
        assert torch.equal(dense["r"].weight_hh_l0, before)

    def test_pruned_by_torch(self) -> None:
        dense = nn.ModuleDict({"r": pruned(nn.GRU(12, 16))}).eval()
        dense["r"].weight_ih_l0.copy_(values(48, 12) * 0.25)
        with torch.enable_grad():
            prune.random_unstructured(dense["r"], "weight_ih_l0", amount=0.8)
        fast = convert(dense)
        assert type(fast["r"]) is SparseGRU
        assert torch.equal(fast["r"].cells[0].input.weight != 0, dense["r"].weight_ih_l0_mask.bool())


class TestLeftAlone:
    def test_an_embedding_and_a_head_tied_to_it(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.layer, self.head = nn.Embedding(N, K), linear(K, K), linear(N, K)
                self.head.bias = None
                self.embed.weight = self.head.weight

            def forward(self, ids: Tensor) -> Tensor:
                return self.head(self.layer(self.embed(ids)))

        dense = Tied().eval()
        ids = torch.arange(N)
        fast = convert(dense, example_inputs=ids)
        assert (type(fast.embed), type(fast.layer), type(fast.head)) == (
            nn.Embedding,
            SparseLinear,
            nn.Linear,
        )
        assert fast.embed.weight is fast.head.weight
        assert torch.equal(fast(ids), dense(ids))
        assert_restored(fast, dense)
        assert fast.embed.weight is fast.head.weight


class TestPrepacked:
    """The dense layer with its weight reordered, where that is faster than both."""

    @pytest.fixture(autouse=True)
    def prepacked_wins(self, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        if not ops.dense.prepack_available(torch.ones(1, 1)):
            pytest.skip("this torch has no oneDNN to reorder a weight with")

        def times(case: Any, layouts: Any, m: int) -> Times:
            dense = {"F.linear": 10.0, "onednn-prepacked": 5.0}
            return Times(m, dense, dict.fromkeys(layouts, 20.0))

        monkeypatch.setattr(decisions_module, "Timer", lambda **options: times)

    def test_checkpoints_go_both_ways(self) -> None:
        dense = nn.Sequential(linear(), linear(8, N, 0.0)).eval()
        fast = convert(dense, example_inputs=torch.ones(3, K))
        assert kinds(fast) == [PrepackedLinear, PrepackedLinear]
        assert set(decisions(fast).values()) == {"prepacked"}
        state = fast.state_dict()
        assert list(state) == list(dense.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        other = nn.Sequential(linear(seed=7), linear(8, N, 0.0, seed=8)).eval()
        x = tokens(5, K, integer=True)
        fast.load_state_dict(other.state_dict())
        assert torch.equal(fast(x), other(x))
        dense.load_state_dict(fast.state_dict())
        assert torch.equal(dense(x), other(x))
        assert_restored(fast, other)

    def test_linears_of_one_input_stay_apart(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = linear(), linear(seed=3)

            def forward(self, x: Tensor) -> Tensor:
                return self.a(x) - self.b(x)

        dense = Two().eval()
        fast = convert(dense, example_inputs=torch.ones(3, K))
        assert (type(fast.a), type(fast.b)) == (PrepackedLinear, PrepackedLinear)
        x = tokens(5, K, integer=True)
        assert torch.equal(fast(x), dense(x))

    def test_attention_and_recurrent_layers_of_prepacked_parts(self) -> None:
        mha = pruned(nn.MultiheadAttention(E, HEADS, batch_first=True), scale=0.25)
        dense = nn.ModuleDict({"a": mha, "r": pruned(nn.LSTM(E, 16), scale=0.25)}).eval()
        fast = convert(dense)
        assert set(decisions(fast).values()) == {"prepacked"}
        x = mha_inputs()
        assert_same(fast["a"], dense["a"], (x, x, x))
        assert_restored(fast, dense)
