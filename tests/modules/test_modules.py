"""SparseLinear: the same layer as the nn.Linear it was made from, in every way a module is used."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from copies import by_pickle
from generators import PATTERNS, block_weight, noncontiguous, tokens, values, weight
from torch import nn
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.modules import SparseLinear, packed
from sparseinfer.modules.packed import packings_pickled

PACKINGS = ("csr", "sell", "bitmap", "rowgroup", "rowlist")
PARTS = ("values", "crow_indices", "col_indices")


def dense(
    n: int = 24, k: int = 40, *, bias: bool = True, pattern: str = "random", seed: int = 0
) -> nn.Linear:
    """Integer-valued, so that every result is exact and compared with equality."""
    linear = nn.Linear(1, 1, bias=bias)
    linear.in_features, linear.out_features = k, n
    linear.weight = nn.Parameter(weight(pattern, n, k, integer=True, seed=seed))
    if bias:
        linear.bias = nn.Parameter(values(n, integer=True, seed=seed))
    return linear


def two_buckets(linear: nn.Linear) -> SparseLinear:
    kernels = [
        ops.default_kernel(ops.pack(CSR.from_dense(linear.weight), name)) for name in ("csr", "rowgroup")
    ]
    buckets = [ops.Bucket(15, 0, kernels[0]), ops.Bucket(None, 1, kernels[1])]
    return SparseLinear.from_linear(linear, ["csr", "rowgroup"], buckets)


def assert_same_layer(sparse: SparseLinear, linear: nn.Linear) -> None:
    assert torch.equal(sparse.weight, linear.weight)
    assert (sparse.bias is None) == (linear.bias is None)
    assert sparse.bias is None or torch.equal(sparse.bias, linear.bias)
    x = tokens(19, linear.in_features, integer=True)
    with torch.no_grad():
        assert torch.equal(sparse(x), linear(x))


class TestForward:
    @pytest.mark.parametrize("packing", PACKINGS)
    @pytest.mark.parametrize("pattern", PATTERNS)
    @pytest.mark.parametrize("bias", [True, False])
    def test_equals_the_dense_layer(self, packing: str, pattern: str, bias: bool) -> None:
        linear = dense(bias=bias, pattern=pattern)
        assert_same_layer(SparseLinear.from_linear(linear, [packing]), linear)

    @pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 17), (0,), (3, 0)])
    def test_any_leading_dimensions(self, shape: tuple[int, ...]) -> None:
        linear = dense()
        x = values(*shape, 40, integer=True)
        with torch.no_grad():
            assert torch.equal(SparseLinear.from_linear(linear)(x), linear(x))

    def test_input_that_is_not_contiguous(self) -> None:
        linear = dense()
        x = tokens(5, 40, integer=True)
        sparse = SparseLinear.from_linear(linear)
        with torch.no_grad():
            assert torch.equal(sparse(noncontiguous(x)), linear(x))
            assert torch.equal(sparse(x.t().contiguous().t()), linear(x))
            assert torch.equal(sparse(x[:1].expand(5, 40)), linear(x[:1].expand(5, 40)))

    @pytest.mark.parametrize(("n", "k"), [(0, 8), (8, 0), (0, 0)])
    def test_sizes_of_zero(self, n: int, k: int) -> None:
        w, bias = torch.zeros(n, k), values(n)
        sparse = SparseLinear.from_format(CSR.from_dense(w), bias)
        assert torch.equal(sparse(torch.ones(3, k)), F.linear(torch.ones(3, k), w, bias))
        assert torch.equal(sparse.to_linear().weight, w)

    @pytest.mark.parametrize("m", [1, 15, 16, 40])
    def test_buckets(self, m: int) -> None:
        linear = dense()
        x = tokens(m, 40, integer=True)
        with torch.no_grad():
            assert torch.equal(two_buckets(linear)(x), linear(x))

    def test_blocks(self) -> None:
        w = block_weight(32, 48, (4, 4), integer=True)
        sparse = SparseLinear.from_format(BSR.from_dense(w, (4, 4)))
        x = tokens(20, 48, integer=True)
        assert torch.equal(sparse(x), F.linear(x, w))

    @pytest.mark.parametrize(
        ("name", "function"), [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu)], ids=lambda v: str(v)[:4]
    )
    def test_activation(self, name: str, function: object) -> None:
        linear = dense()
        sparse = SparseLinear.from_format(CSR.from_dense(linear.weight), linear.bias, activation=name)
        x = tokens(20, 40)
        with torch.no_grad():
            torch.testing.assert_close(sparse(x), function(linear(x)))
        with pytest.raises(ValueError, match="activation: expected 'none'"):
            sparse.to_linear()


class TestInferenceOnly:
    def test_a_gradient_is_refused(self) -> None:
        sparse = SparseLinear.from_linear(dense())
        x = tokens(3, 40).requires_grad_()
        with pytest.raises(RuntimeError, match=r"x: expected an input without gradients.*no_grad"):
            sparse(x)
        with torch.no_grad():
            assert not sparse(x).requires_grad
        with torch.inference_mode():
            assert sparse(x).is_inference()

    def test_nothing_to_train(self) -> None:
        sparse = SparseLinear.from_linear(dense())
        assert [name for name, _ in sparse.named_parameters()] == ["bias"]
        assert not any(parameter.requires_grad for parameter in sparse.parameters())
        assert not any(buffer.requires_grad for buffer in sparse.buffers())

    def test_holds_only_packings_and_bias(self) -> None:
        sparse = two_buckets(dense())
        held = dict(sparse.named_buffers())
        assert set(held) == {"packing_0", "packing_1"}
        assert sparse.nbytes == sum(t.nbytes for t in held.values()) + sparse.bias.nbytes


class TestStateDict:
    def test_speaks_the_format(self) -> None:
        linear = dense()
        state = nn.Sequential(SparseLinear.from_linear(linear)).state_dict()
        assert set(state) == {f"0.{part}" for part in (*PARTS, "bias")}
        fmt = CSR.from_dense(linear.weight)
        assert all(torch.equal(state[f"0.{part}"], getattr(fmt, part)) for part in PARTS)

    @pytest.mark.parametrize("bias", [True, False])
    def test_round_trip_into_a_layer_with_other_zeros(self, bias: bool) -> None:
        linear = dense(bias=bias, seed=1)
        target = nn.Sequential(two_buckets(dense(bias=bias, pattern="one_dense_row", seed=2)))
        source = nn.Sequential(SparseLinear.from_linear(linear))
        result = target.load_state_dict(source.state_dict())
        assert result.missing_keys == []
        assert result.unexpected_keys == []
        assert_same_layer(target[0], linear)

    def test_round_trip_of_blocks(self) -> None:
        w = block_weight(32, 48, (4, 4))
        source = SparseLinear.from_format(BSR.from_dense(w, (4, 4)))
        target = SparseLinear.from_format(BSR.from_dense(torch.zeros(32, 48), (4, 4)))
        target.load_state_dict(source.state_dict())
        assert torch.equal(target.weight, w)

    @pytest.mark.parametrize(
        ("part", "spoil", "message"),
        [
            ("values", lambda t: t[:3], "expected 3 elements"),
            ("values", lambda t: t.double(), "float64"),
            ("values", lambda t: t.bfloat16(), "expected dtype torch.float32"),
            ("values", lambda t: "text", "expected a torch.Tensor"),
            ("crow_indices", lambda t: t[:7], "expected 25 elements"),
            ("crow_indices", lambda t: t.flip(0), "crow_indices"),
            ("col_indices", lambda t: t + 40, "col_indices"),
            ("bias", lambda t: t[:7], "size mismatch"),
        ],
    )
    def test_what_does_not_fit_is_an_error_and_changes_nothing(
        self, part: str, spoil: Callable[[torch.Tensor], object], message: str
    ) -> None:
        linear = dense()
        sparse = SparseLinear.from_linear(linear)
        state = SparseLinear.from_linear(dense(seed=5)).state_dict()
        state[part] = spoil(state[part])
        with pytest.raises(RuntimeError, match=message):
            sparse.load_state_dict(state)
        assert_same_layer(sparse, linear)

    def test_another_shape_is_an_error_and_changes_nothing(self) -> None:
        linear = dense()
        sparse = SparseLinear.from_linear(linear)
        for other in (dense(n=25), dense(k=41, pattern="all_dense")):
            with pytest.raises(RuntimeError, match="expected"):
                sparse.load_state_dict(SparseLinear.from_linear(other).state_dict())
        assert_same_layer(sparse, linear)

    def test_missing_and_unexpected_keys_are_named(self) -> None:
        sparse = nn.Sequential(SparseLinear.from_linear(dense()))
        with pytest.raises(RuntimeError, match=r'Missing key.*"0.values"[^$]*Unexpected key.*"0.weight"'):
            sparse.load_state_dict(nn.Sequential(dense()).state_dict())
        state = sparse.state_dict()
        del state["0.bias"]
        with pytest.raises(RuntimeError, match=r'Missing key.*"0.bias"'):
            sparse.load_state_dict(state)
        assert sparse.load_state_dict(state, strict=False).missing_keys == ["0.bias"]


class TestCopies:
    @pytest.mark.parametrize("bias", [True, False])
    def test_to_linear_is_exact(self, bias: bool) -> None:
        linear = dense(bias=bias)
        before = torch.get_rng_state()
        back = SparseLinear.from_linear(linear).to_linear()
        assert torch.equal(torch.get_rng_state(), before)
        assert type(back) is nn.Linear
        assert (back.out_features, back.in_features) == (24, 40)
        assert torch.equal(back.weight, linear.weight)
        assert back.weight.requires_grad
        assert (back.bias is None) == (not bias)

    def test_deepcopy_shares_nothing(self) -> None:
        linear = dense()
        sparse = two_buckets(linear)
        twin = copy.deepcopy(nn.Sequential(sparse, sparse))
        assert twin[0] is twin[1]
        assert_same_layer(twin[0], linear)
        assert {b.data_ptr() for b in twin.buffers()}.isdisjoint(b.data_ptr() for b in sparse.buffers())
        assert twin[0].plan == sparse.plan

    def test_pickle_keeps_packings_where_it_is_told_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        linear = dense()
        sparse = two_buckets(linear)
        with packings_pickled():
            pickled = pickle.dumps(sparse)
        monkeypatch.setattr(packed, "pack_groups", None)  # nothing is packed again
        twin = pickle.loads(pickled)
        buffers = dict(sparse.named_buffers())
        assert len(buffers) == 2
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in twin.named_buffers())
        for m in (1, 20):
            x = tokens(m, 40, integer=True)
            assert torch.equal(twin(x), linear(x))
        assert torch.equal(twin.to_format().values, sparse.to_format().values)

    def test_pickle_goes_through_the_format(self) -> None:
        linear = dense()
        sparse = two_buckets(linear)
        twin = by_pickle(sparse)
        assert_same_layer(twin, linear)
        assert twin.plan == sparse.plan
        assert set(twin.state_dict()) == set(sparse.state_dict())
        assert "packing_0" not in sparse.__getstate__()["_buffers"]
        assert "packing_0" in dict(sparse.named_buffers())

    def test_shallow_copy(self) -> None:
        linear = dense()
        assert_same_layer(copy.copy(SparseLinear.from_linear(linear)), linear)


class TestMoves:
    def test_to_the_same_dtype_and_device(self) -> None:
        linear = dense()
        assert_same_layer(SparseLinear.from_linear(linear).to("cpu", torch.float32).float().cpu(), linear)

    @pytest.mark.parametrize("move", ["half", "bfloat16", "double"])
    def test_to_another_dtype_is_refused(self, move: str) -> None:
        linear = dense()
        sparse = SparseLinear.from_linear(linear)
        with pytest.raises(TypeError, match=r"SparseLinear: expected to stay torch.float32 on cpu.*convert"):
            getattr(sparse, move)()
        assert_same_layer(sparse, linear)

    def test_to_another_device_is_refused(self) -> None:
        linear = dense()
        sparse = SparseLinear.from_linear(linear)
        with pytest.raises(TypeError, match=r"got a move to torch.float32 on meta"):
            sparse.to("meta")
        assert_same_layer(sparse, linear)

    def test_share_memory(self) -> None:
        linear = dense()
        assert_same_layer(SparseLinear.from_linear(linear).share_memory(), linear)


class TestConstruction:
    def test_figures(self) -> None:
        linear = dense()
        sparse = two_buckets(linear)
        assert sparse.nnz == int(linear.weight.count_nonzero())
        assert sparse.sparsity == pytest.approx(1 - sparse.nnz / (24 * 40))
        shown = repr(sparse)
        assert "in_features=40, out_features=24, bias=True" in shown
        assert re.search(r"packings=\[csr_f32, rowgroup_f32_p\d+\]", shown)

    def test_bad_arguments(self) -> None:
        w = weight("random", 8, 8)
        packed = ops.pack(CSR.from_dense(w), "csr")
        other = ops.pack(CSR.from_dense(weight("random", 8, 9)), "csr")
        with pytest.raises(ValueError, match="packings: expected at least one"):
            SparseLinear([])
        with pytest.raises(ValueError, match="packings: expected packings of one matrix"):
            SparseLinear([packed, other])
        with pytest.raises(ValueError, match="buckets: expected packing < 1"):
            SparseLinear([packed], buckets=[ops.Bucket(None, 1, ops.default_kernel(packed))])
        with pytest.raises(ValueError, match=r"bias: expected shape \(8,\)"):
            SparseLinear([packed], torch.ones(7))
        with pytest.raises(TypeError, match=r"bias: expected dtype torch.float32"):
            SparseLinear([packed], torch.ones(8, dtype=torch.float64))
        with pytest.raises(ValueError, match="packing: expected one of"):
            SparseLinear.from_format(CSR.from_dense(w), packings=["nosuch"])
