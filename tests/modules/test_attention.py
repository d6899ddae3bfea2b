"""SparseMultiheadAttention computes what nn.MultiheadAttention computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_helpers import HEADS, E, L, N, S, assert_same, dense, inputs, random_mask, sparse
from copies import by_pickle
from torch import nn

from sparseinfer.formats import CSR
from sparseinfer.modules import SparseLinear, SparseMultiheadAttention

OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 6, "vdim": 9},
    {"kdim": 6, "batch_first": True, "bias": False},
]


class TestForward:
    @pytest.mark.parametrize("batched", [True, False])
    @pytest.mark.parametrize("need_weights", [True, False])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_query_key_and_value_of_their_own(
        self, options: dict[str, Any], need_weights: bool, batched: bool
    ) -> None:
        mha = dense(**options)
        assert_same(sparse(mha), mha, inputs(mha, batched=batched), need_weights=need_weights)

    @pytest.mark.parametrize("split", [True, False])
    @pytest.mark.parametrize("batch_first", [True, False])
    def test_the_same_tensor_twice_or_three_times(self, batch_first: bool, split: bool) -> None:
        mha = dense(batch_first=batch_first)
        module = sparse(mha, split=split)
        query, key, value = inputs(mha)
        for given in ((query, query, query), (query, key, key), (value, key, value), (key, key, value)):
            for need_weights in (True, False):
                assert_same(module, mha, given, need_weights=need_weights)

    def test_calls_of_a_packed_projection(self) -> None:
        mha = dense()
        module = sparse(mha)
        query, key, value = inputs(mha)
        calls: list[int] = []
        module.in_proj.register_forward_hook(lambda *_: calls.append(1))
        for given, expected in (((query, query, query), 1), ((query, key, key), 2), ((query, key, value), 3)):
            calls.clear()
            module(*given)
            assert len(calls) == expected

    def test_dense_parts_and_gradients(self) -> None:
        mha = dense()
        x = inputs(mha)[0]
        module = SparseMultiheadAttention.from_attention(mha)
        assert module.in_proj.weight.data_ptr() == mha.in_proj_weight.data_ptr()
        assert_same(module, mha, (x, x, x))
        x.requires_grad_()
        with pytest.raises(RuntimeError, match="x: expected an input without gradients"):
            sparse(mha)(x, x, x)

    def test_averaged_weights_or_not(self) -> None:
        mha = dense(batch_first=True)
        for batched in (True, False):
            assert_same(sparse(mha), mha, inputs(mha, batched=batched), average_attn_weights=False)

    def test_dropout_only_in_training(self) -> None:
        mha = dense(dropout=0.5)
        module = sparse(mha)
        given = inputs(mha)
        assert_same(module, mha, given)
        for need_weights in (True, False):
            first, second = (module.train()(*given, need_weights=need_weights)[0] for _ in range(2))
            assert not torch.equal(first, second)

    def test_nothing_to_attend_for(self) -> None:
        module = sparse(dense(batch_first=True))
        x = torch.zeros(0, L, E)
        assert module(x, x, x, need_weights=False)[0].shape == (0, L, E)


class TestMasks:
    @pytest.mark.parametrize("floating", [True, False])
    @pytest.mark.parametrize("need_weights", [True, False])
    @pytest.mark.parametrize("shape", [None, (L, S), (N * HEADS, L, S)])
    @pytest.mark.parametrize("padded", [True, False])
    def test_batched(
        self, shape: tuple[int, ...] | None, padded: bool, need_weights: bool, floating: bool
    ) -> None:
        for options in ({}, {"batch_first": True, "add_zero_attn": True, "add_bias_kv": True}):
            mha = dense(**options)
            assert_same(
                sparse(mha),
                mha,
                inputs(mha),
                need_weights=need_weights,
                attn_mask=None if shape is None else random_mask(*shape, floating=floating),
                key_padding_mask=random_mask(N, S, floating=floating) if padded else None,
            )

    @pytest.mark.parametrize("shape", [(L, S), (HEADS, L, S)])
    def test_unbatched(self, shape: tuple[int, ...]) -> None:
        mha = dense()
        masks = {
            "attn_mask": random_mask(*shape, floating=False),
            "key_padding_mask": random_mask(S, floating=False),
        }
        for need_weights in (True, False):
            assert_same(sparse(mha), mha, inputs(mha, batched=False), need_weights=need_weights, **masks)

    @pytest.mark.parametrize("padded", [True, False])
    @pytest.mark.parametrize("need_weights", [True, False])
    def test_causal(self, need_weights: bool, padded: bool) -> None:
        mha = dense(batch_first=True)
        x = inputs(mha)[0]
        mask = torch.triu(torch.ones(L, L, dtype=torch.bool), 1)
        padding = random_mask(N, L, floating=False) if padded else None
        options = {"need_weights": need_weights, "attn_mask": mask, "key_padding_mask": padding}
        assert_same(sparse(mha), mha, (x, x, x), is_causal=True, **options)
        assert_same(sparse(mha), mha, (x, x, x), **options)


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"query": torch.ones(L)}, ValueError, "query: expected 2 or 3 dimensions, got 1"),
            ({"key": torch.ones(S, E)}, ValueError, "key: expected 3 dimensions like query, got 2"),
            ({"key": torch.ones(S, N, 5)}, ValueError, "key: expected 16 features, got 5"),
            ({"value": torch.ones(S, 2, E)}, ValueError, "value: expected batch size 3 like query, got 2"),
            ({"value": torch.ones(4, N, E)}, ValueError, "value: expected the length of key"),
            (
                {"attn_mask": torch.ones(L, L)},
                ValueError,
                r"attn_mask: expected shape \(5, 7\) or \(12, 5, 7\)",
            ),
            ({"attn_mask": torch.ones(L, S).int()}, TypeError, "attn_mask: expected dtype torch.bool or"),
            (
                {"key_padding_mask": torch.ones(S, N)},
                ValueError,
                r"key_padding_mask: expected shape \(3, 7\)",
            ),
            ({"is_causal": True}, ValueError, "attn_mask: expected the causal mask with is_causal=True"),
        ],
    )
    def test_forward(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        mha = dense()
        given = dict(zip(("query", "key", "value"), inputs(mha), strict=True))
        with pytest.raises(error, match=message):
            sparse(mha)(**{**given, **change})

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    def test_nested(self) -> None:
        mha = dense(batch_first=True)
        x = torch.nested.nested_tensor([torch.ones(2, E), torch.ones(3, E)])
        with pytest.raises(
            TypeError, match=r"query: expected a plain tensor, got a nested one.*padding_mask"
        ):
            sparse(mha)(x, x, x)

    def test_construction(self) -> None:
        e = E
        out = nn.Linear(e, e)
        make = SparseMultiheadAttention
        with pytest.raises(ValueError, match="num_heads: expected a divisor of embed_dim = 16, got 3"):
            make(nn.Linear(e, 3 * e), out, 3)
        with pytest.raises(ValueError, match=r"in_proj: expected out_features, in_features = \(48, 16\)"):
            make(nn.Linear(e, e), out, 4)
        with pytest.raises(ValueError, match="in_proj: expected one module or three, got 2"):
            make([nn.Linear(e, e)] * 2, out, 4)
        with pytest.raises(ValueError, match=r"out_proj: expected out_features, in_features = \(16, 16\)"):
            make(nn.Linear(e, 3 * e), nn.Linear(5, e), 4)
        with pytest.raises(TypeError, match=r"in_proj: expected a module like nn.Linear, got ReLU"):
            make(nn.ReLU(), out, 4)
        with pytest.raises(ValueError, match="in_proj: expected a bias in all three modules or in none"):
            make([nn.Linear(e, e), nn.Linear(e, e), nn.Linear(e, e, bias=False)], out, 4)
        with pytest.raises(ValueError, match="bias_k: expected both"):
            make(nn.Linear(e, 3 * e), out, 4, bias_k=torch.ones(1, 1, e))
        with pytest.raises(ValueError, match=r"bias_v: expected shape \(1, 1, 16\), got \(16,\)"):
            make(nn.Linear(e, 3 * e), out, 4, bias_k=torch.ones(1, 1, e), bias_v=torch.ones(e))
        fused = SparseLinear.from_format(CSR.from_dense(torch.ones(e, e)), activation="relu")
        with pytest.raises(ValueError, match="out_proj: expected no activation, got 'relu'"):
            make(nn.Linear(e, 3 * e), fused, 4)
        with pytest.raises(TypeError, match=r"mha: expected nn.MultiheadAttention, got Linear"):
            make.from_attention(out)
        with pytest.raises(
            ValueError, match=r"in_proj: expected .* = \(16, 6, 16\) like mha, got \(16, 16, 16\)"
        ):
            make.from_attention(dense(kdim=6), nn.Linear(e, 3 * e), out)


class TestCopies:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("split", [True, False])
    def test_to_attention_is_exact(self, options: dict[str, Any], split: bool) -> None:
        mha = dense(**options, dropout=0.25)
        before = torch.get_rng_state()
        back = sparse(mha, split=split).to_attention()
        assert torch.equal(torch.get_rng_state(), before)
        assert type(back) is nn.MultiheadAttention
        assert vars(back).keys() == vars(mha).keys()
        assert repr(back) == repr(mha)
        for name in ("batch_first", "dropout", "add_zero_attn", "kdim", "vdim", "training"):
            assert getattr(back, name) == getattr(mha, name)
        state, wanted = back.state_dict(), mha.state_dict()
        assert list(state) == list(wanted)
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)

    @pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"kdim": 6}], ids=str)
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
    def test_deepcopy_and_pickle(
        self, options: dict[str, Any], duplicate: Callable[[nn.Module], nn.Module]
    ) -> None:
        mha = dense(**options)
        module = sparse(mha)
        twin = duplicate(module)
        given = inputs(mha)
        assert torch.equal(twin(*given)[0], module(*given)[0])
        assert twin.in_proj is not module.in_proj

    def test_state_dict(self) -> None:
        mha = dense(add_bias_kv=True)
        source, target = sparse(mha), sparse(dense(add_bias_kv=True))
        for buffer in target.buffers():
            if buffer.is_floating_point():
                buffer.zero_()
        state = source.state_dict()
        assert {"in_proj.values", "out_proj.bias", "bias_k", "bias_v"} <= set(state)
        target.load_state_dict(state)
        given = inputs(mha)
        assert torch.equal(target(*given)[0], source(*given)[0])


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh_dynamo(self) -> None:
        torch._dynamo.reset()

    @pytest.mark.parametrize(
        "options", [{}, {"add_bias_kv": True, "batch_first": True}, {"kdim": 6}], ids=str
    )
    @pytest.mark.parametrize("need_weights", [True, False])
    def test_fullgraph(self, options: dict[str, Any], need_weights: bool) -> None:
        mha = dense(**options)
        module = sparse(mha)
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        query, key, value = inputs(mha)
        masks = {
            "attn_mask": random_mask(L, S, floating=False),
            "key_padding_mask": random_mask(N, S, floating=False),
        }
        for kwargs in ({}, masks):
            with torch.no_grad():
                got = compiled(query, key, value, need_weights=need_weights, **kwargs)
                wanted = module(query, key, value, need_weights=need_weights, **kwargs)
            assert torch.equal(got[0], wanted[0])
            assert wanted[1] is None or torch.equal(got[1], wanted[1])
        if mha.kdim == E:
            with torch.no_grad():
                assert torch.equal(compiled(query, query, query)[0], module(query, query, query)[0])

    def test_export(self) -> None:
        mha = dense(batch_first=True)
        module = sparse(mha)
        x = inputs(mha)[0]
        program = torch.export.export(module, (x, x, x), {"need_weights": False})
        with torch.no_grad():
            wanted = module(x, x, x, need_weights=False)[0]
            assert torch.equal(program.module()(x, x, x, need_weights=False)[0], wanted)
