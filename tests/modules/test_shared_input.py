"""Linears of one input as one matrix: results are exact, whatever happens between the calls."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convert_helpers import K, linear
from copies import by_file, by_pickle
from fusion_helpers import ints
from shared_helpers import QKV, count_parts, pair
from torch import Tensor, nn

from sparseinfer import SparseLinear, convert, convert_, densify_, explain
from sparseinfer.modules import SharedInputLinear

pytestmark = pytest.mark.usefixtures("script", "no_grad")


class Gated(nn.Module):
    """A feed-forward layer: down(silu(gate) · up)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = linear(24, K), linear(24, K, seed=5), linear(K, 24, seed=9)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class TestConverted:
    @pytest.mark.parametrize("shape", [(1, K), (20, K), (2, 3, K), (K,), (0, K), (2, 0, K)])
    def test_results_are_those_of_three(self, shape: tuple[int, ...]) -> None:
        dense, fast = pair()
        x = ints(max(1, torch.Size(shape).numel() // K))[: torch.Size(shape).numel() // K].reshape(shape)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(fast(x), dense(x))

    def test_the_matrix_is_multiplied_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense, fast = pair()
        calls = count_parts(monkeypatch)
        x = ints()
        assert torch.equal(fast(x), dense(x))
        assert calls == [(True, True, True)]
        with torch.inference_mode():
            fast(ints())
        assert calls == [(True, True, True)] * 2

    def test_by_itself_each_computes_its_own_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense, fast = pair()
        calls = count_parts(monkeypatch)
        x = ints()
        for name in "qkvk":
            assert torch.equal(getattr(fast, name)(x), getattr(dense, name)(x))
        own = [(True, False, False), (False, True, False), (False, False, True)]
        assert calls == [*own, own[1]]

    def test_gate_and_up(self) -> None:
        dense = Gated().eval()
        fast = convert(dense, example_inputs=torch.ones(3, K))
        assert [type(m) for m in (fast.gate, fast.up, fast.down, fast.act)] == [
            SharedInputLinear,
            SharedInputLinear,
            SparseLinear,
            nn.ReLU,
        ]
        assert torch.equal(fast(ints()), dense(ints()))

    def test_in_place(self) -> None:
        dense = QKV().eval()
        fast = convert_(copy.deepcopy(dense), example_inputs=torch.ones(3, K))
        assert type(fast.v) is SharedInputLinear
        assert torch.equal(fast(ints()), dense(ints()))

    @pytest.mark.parametrize("options", [{"fuse": False}, {"example_inputs": None, "tokens": (3,)}])
    def test_only_with_example_inputs_and_if_not_forbidden(self, options: dict[str, object]) -> None:
        fast = convert(QKV().eval(), **{"example_inputs": torch.ones(3, K), **options})
        assert all(type(part) is SparseLinear for part in (fast.q, fast.k, fast.v))

    def test_a_layer_that_was_not_called_is_on_its_own(self) -> None:
        class Mixed(QKV):
            def forward(self, x: Tensor) -> Tensor:
                return self.q(x).sum() + self.k(x).sum()

        dense = Mixed().eval()
        dense.v.bfloat16()
        for options, kind in (({}, nn.Linear), ({"targets": ["q", "k", "v"]}, SparseLinear)):
            fast = convert(dense, example_inputs=torch.ones(3, K), **options)
            assert type(fast.q) is type(fast.k) is SharedInputLinear
            assert type(fast.v) is kind

    def test_explained_by_shares(self) -> None:
        _, fast = pair()
        rows = explain(fast).rows
        assert [row.layer for row in rows] == ["q", "k", "v"]
        assert [row.shape for row in rows] == [(24, K), (8, K), (16, K)]
        assert rows[0].reason.endswith("one matrix with k, v")
        assert sum(row.nbytes for row in rows) == fast.q.linear.nbytes
        assert sum(row.sparse_us[0] for row in rows) == pytest.approx(5.0)

    def test_back(self) -> None:
        dense, fast = pair()
        densify_(fast)
        state = fast.state_dict()
        assert state.keys() == dense.state_dict().keys()
        assert all(torch.equal(state[name], t) for name, t in dense.state_dict().items())
        assert fast.k.bias is None

    def test_weight_and_bias_are_the_rows(self) -> None:
        dense, fast = pair()
        for name in ("q", "k", "v"):
            own, part = getattr(dense, name), getattr(fast, name)
            assert torch.equal(part.weight, own.weight)
            assert (part.in_features, part.out_features) == (own.in_features, own.out_features)
        assert torch.equal(fast.v.bias, dense.v.bias)


class TestCalls:
    @pytest.mark.parametrize("order", ["qkv", "vkq", "kk", "qqkkvv", "v", "qvqk", "kvqqvk"])
    def test_in_any_order(self, order: str) -> None:
        dense, fast = pair()
        for seed in range(2):
            x = ints(seed=seed)
            for name in order:
                assert torch.equal(getattr(fast, name)(x), getattr(dense, name)(x))

    def test_x_changed_between_the_calls(self) -> None:
        dense, fast = pair()
        x = ints()
        for name in ("q", "k", "v", "k", "v"):
            assert torch.equal(getattr(fast, name)(x), getattr(dense, name)(x))
            x[0] += 1
            x.view(-1)[3] = 2

    def test_another_tensor_between_the_calls(self) -> None:
        dense, fast = pair()
        x, y = ints(), ints(seed=1)
        for name, t in (("q", x), ("k", y), ("k", x), ("v", y), ("q", y), ("v", x)):
            assert torch.equal(getattr(fast, name)(t), getattr(dense, name)(t))

    def test_a_new_tensor_where_one_died(self) -> None:
        dense, fast = pair()
        for seed in range(20):
            x = ints(seed=seed)
            name = "qkv"[seed % 3]
            assert torch.equal(getattr(fast, name)(x), getattr(dense, name)(x))
            del x

    def test_results_may_be_written_to(self) -> None:
        dense, fast = pair()
        x = ints()
        q = fast.q(x).zero_()
        k = fast.k(x)
        assert torch.equal(k, dense.k(x))
        k.add_(7)
        assert torch.equal(fast.v(x), dense.v(x))
        assert not q.any()

    def test_weights_loaded_between_the_calls(self) -> None:
        _, fast = pair()
        other = QKV().eval()
        for part in (other.q, other.k, other.v):
            part.weight.mul_(-1)
        x = ints()
        fast.q(x)
        fast.load_state_dict(convert(other, example_inputs=x).state_dict())
        assert torch.equal(fast.k(x), other.k(x))

    def test_several_threads_with_one_model(self) -> None:
        dense, fast = pair()
        wrong: list[int] = []
        inputs = [ints(seed=seed) for seed in range(4)]
        wanted = [dense(x) for x in inputs]
        barrier = threading.Barrier(4)

        @torch.inference_mode()
        def work(i: int) -> None:
            barrier.wait()
            for turn in range(200):
                j = (i + turn) % 4
                # All threads are given the same tensors, and some a copy of their own.
                if not torch.equal(fast(inputs[j].clone() if turn % 2 else inputs[j]), wanted[j]):
                    wrong.append(j)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    @pytest.mark.parametrize("order", ["qkv", "q", "qk"])
    def test_nothing_is_kept_alive(self, order: str) -> None:
        _, fast = pair()
        x = ints()
        results = [getattr(fast, name)(x) for name in order]
        watched = [weakref.ref(x), *(weakref.ref(y) for y in results)]
        assert [y._base for y in results] == [None] * len(order)
        del x, results
        gc.collect()
        assert [ref() for ref in watched] == [None] * len(watched)

    def test_gradients_are_refused(self) -> None:
        _, fast = pair()
        with torch.enable_grad(), pytest.raises(RuntimeError, match="expected an input without gradients"):
            fast(ints().requires_grad_())


class TestCopies:
    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, by_pickle, by_file], ids=["deepcopy", "pickle", "torch.save"]
    )
    def test_share_among_themselves(self, copied: Callable[[Any], Any]) -> None:
        dense, fast = pair()
        fast.q(ints())  # leaves results that nobody took
        twin = copied(fast)
        assert torch.equal(twin(ints()), dense(ints()))
        assert twin.k._shared is twin.q._shared
        assert twin.k._shared.linear is twin.q.linear
        assert twin.q.linear is not fast.q.linear

    def test_state_dict(self) -> None:
        dense, fast = pair()
        state = fast.state_dict()
        assert set(state) == {
            f"q.linear.{name}" for name in ("values", "crow_indices", "col_indices", "bias")
        }
        other = QKV().eval()
        for parameter in other.parameters():
            parameter.mul_(2)
        twin = convert(other, example_inputs=torch.ones(3, K))
        assert not torch.equal(twin(ints()), dense(ints()))
        twin.load_state_dict(state)
        assert torch.equal(twin(ints()), dense(ints()))

    def test_converted_again(self) -> None:
        dense, fast = pair()
        with pytest.warns(UserWarning, match="got none of 0"):
            again = convert(fast, example_inputs=torch.ones(3, K))
        assert torch.equal(again(ints()), dense(ints()))

    def test_other_dtypes_are_refused(self) -> None:
        _, fast = pair()
        assert fast.float() is fast
        with pytest.raises(TypeError, match="expected to stay"):
            fast.bfloat16()
