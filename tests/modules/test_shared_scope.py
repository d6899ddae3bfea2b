"""Linears of one input as one matrix: results are kept while the parent's forward runs, and no longer."""

from __future__ import annotations

import copy
import threading
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


class Steps(QKV):
    """What its forward does is said by a test, but for the example."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[Any, Tensor], Any]] = []

    def forward(self, x: Tensor) -> Any:
        if not self.steps:
            return super().forward(x)
        return self.steps[0](self, x)


def models(steps: Callable[[Any, Tensor], Any]) -> tuple[Any, Any]:
    dense = Steps().eval()
    fast = convert(dense, example_inputs=torch.ones(3, K))
    assert type(fast.v) is SharedInputLinear
    for model in (dense, fast):
        model.steps = [steps]
    return dense, fast


def assert_equal(fast: Any, dense: Any, seed: int = 0) -> None:
    """Each is given an input of its own, which its steps may change."""
    got, wanted = fast(ints(seed=seed)), dense(ints(seed=seed))
    assert len(got) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def write_to_numpy(m: Any, x: Tensor) -> Any:
    q = m.q(x)
    view = x.numpy()
    view += 1
    return q, m.k(x), m.v(x)


def write_to_a_view_made_before(m: Any, x: Tensor) -> Any:
    view = x.numpy()
    q = m.q(x)
    view[0] += 1
    return q, m.k(x), m.v(x)


def of_numpy(m: Any, x: Tensor) -> Any:
    array = x.numpy().copy()
    x = torch.from_numpy(array)
    q = m.q(x)
    array += 1
    k = m.k(x)
    array[0, 0] = 5
    return q, k, m.v(x)


def in_inference_mode(m: Any, x: Tensor) -> Any:
    with torch.inference_mode():
        x = x.clone()
        q = m.q(x)
        x.add_(1)
        k = m.k(x)
        x[0] = 2
        return q, k, m.v(x)


def swapped(m: Any, x: Tensor) -> Any:
    q = m.q(x)
    x.data = x.data + 1
    return q, m.k(x), m.v(x)


WRITES: dict[str, Callable[[Any, Tensor], Any]] = {
    "in place": lambda m, x: (m.q(x), m.k(x.add_(1)), m.v(x)),
    "through a view": lambda m, x: (m.q(x), x.view(-1)[3:9].zero_(), m.k(x), m.v(x)),
    "through a detached one": lambda m, x: (m.q(x), x.detach().add_(1), m.k(x), m.v(x)),
    "as data": lambda m, x: (m.q(x), x.data.add_(1), m.k(x), m.v(x)),
    "other data": swapped,
    "to numpy": write_to_numpy,
    "to a view of numpy's": write_to_a_view_made_before,
    "to memory of numpy": of_numpy,
    "in inference mode": in_inference_mode,
    "to a result": lambda m, x: (m.q(x).zero_(), m.k(x).add_(1), m.v(x)),
    "by out": lambda m, x: (m.q(x), torch.add(x, 1, out=x), m.k(x), m.v(x)),
    "copied": lambda m, x: (m.q(x), m.k(x.clone()), m.v(x[:])),
}


class TestScope:
    @pytest.mark.parametrize("write", WRITES)
    def test_what_is_written_between_the_calls(self, write: str) -> None:
        dense, fast = models(WRITES[write])
        for seed in range(2):
            assert_equal(fast, dense, seed)

    def test_a_part_that_nobody_took_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even for the same tensor: what is written to its memory between two forwards, nobody counts."""
        dense, fast = models(lambda m, x: (m.q(x),))
        x = ints()
        calls = count_parts(monkeypatch)
        fast(x)
        x.data.add_(1)
        dense.steps, fast.steps = [lambda m, x: (m.k(x), m.v(x))], [lambda m, x: (m.k(x), m.v(x))]
        assert all(torch.equal(a, b) for a, b in zip(fast(x), dense(x), strict=True))
        assert calls == [(True,) * 3] * 2
        x.data.add_(1)
        assert torch.equal(fast.v(x), dense.v(x))
        assert fast.q._shared._last.parts == {}

    def test_in_the_next_forward_the_same_tensor_is_new(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense, fast = models(lambda m, x: (m.q(x), m.k(x)))
        x = ints()
        calls = count_parts(monkeypatch)
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(fast(x), dense(x), strict=True))
        assert len(calls) == 3

    def test_recursion(self) -> None:
        def again(m: Any, x: Tensor) -> Any:
            q = m.q(x)
            if len(x) > 1:
                inner = m(x[:1])
                return (q, *inner, m.k(x), m.v(x))
            return (q, m.k(x), m.v(x))

        dense, fast = models(again)
        assert_equal(fast, dense)
        assert not fast.q._shared._last.open

    def test_recursion_with_the_same_tensor(self) -> None:
        def again(m: Any, x: Tensor) -> Any:
            q = m.q(x)
            m.depth += 1
            if m.depth < 3:
                inner = m(x)
                x.add_(1)
                return (q, *inner, m.k(x), m.v(x))
            return (q, m.v(x))

        dense, fast = models(again)
        dense.depth = fast.depth = 0
        assert_equal(fast, dense)

    def test_an_error_in_the_forward(self) -> None:
        def fails(m: Any, x: Tensor) -> Any:
            m.q(x)
            raise KeyError("on purpose")

        dense, fast = models(fails)
        x = ints()
        with pytest.raises(KeyError, match="on purpose"):
            fast(x)
        last = fast.q._shared._last
        assert not last.open
        assert last.parts == {}
        x.data.add_(1)
        assert torch.equal(fast.k(x), dense.k(x))

    def test_an_error_before_it(self) -> None:
        dense, fast = models(lambda m, x: (m.q(x), m.k(x)))

        def fails(module: nn.Module, args: Any) -> None:
            raise KeyError("on purpose")

        handle = fast.register_forward_pre_hook(fails)
        with pytest.raises(KeyError, match="on purpose"):
            fast(ints())
        handle.remove()
        assert not fast.q._shared._last.open
        assert_equal(fast, dense)

    def test_forward_called_past_the_hooks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dense, fast = models(WRITES["as data"])
        got, wanted = fast.forward(ints()), dense.forward(ints())
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        calls = count_parts(monkeypatch)
        fast.forward(ints())
        assert [sum(wanted) for wanted in calls] == [1, 1, 1]

    def test_two_forwards_of_two_threads(self) -> None:
        """One waits within its forward, while the other's begins and ends."""
        inside, done = threading.Event(), threading.Event()

        def steps(m: Any, x: Tensor) -> Any:
            q = m.q(x)
            if len(x) == 6:
                inside.set()
                assert done.wait(20)
            return q, m.k(x), m.v(x)

        dense, fast = models(steps)
        done.set()
        wanted = dense(ints())
        inside.clear()
        done.clear()
        results: list[Any] = []

        def work() -> None:
            with torch.no_grad():
                results.append(fast(ints()))

        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(20)
        other = fast(ints(4))
        done.set()
        thread.join()
        assert all(torch.equal(a, b) for a, b in zip(results[0], wanted, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(other, dense(ints(4)), strict=True))

    def test_a_parent_that_is_no_caller(self) -> None:
        """A ModuleDict holds them, and somebody else calls them."""

        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.of = nn.ModuleDict({"q": linear(24, K), "k": linear(8, K, seed=5)})

            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([self.of["q"](x), self.of["k"](x)], -1)

        dense = Outer().eval()
        fast = convert(dense, example_inputs=torch.ones(3, K))
        assert type(fast.of["k"]) is SharedInputLinear
        assert torch.equal(fast(ints()), dense(ints()))


COPIES: dict[str, Any] = {
    "itself": lambda m: m,
    "deepcopy": copy.deepcopy,
    "pickle": by_pickle,
    "torch.save": by_file,
}


class TestParentsHooks:
    @pytest.mark.parametrize("how", COPIES)
    def test_copies_share_while_their_own_parent_runs(
        self, how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dense, fast = pair()
        twin = COPIES[how](fast)
        calls = count_parts(monkeypatch)
        assert torch.equal(twin(ints()), dense(ints()))
        assert calls == [(True,) * 3]
        handles = [*twin._forward_pre_hooks.values(), *twin._forward_hooks.values()]
        assert {id(hook.shared) for hook in handles} == {id(twin.q._shared)}
        if how != "itself":
            assert twin.q._shared is not fast.q._shared

    @pytest.mark.parametrize("how", COPIES)
    def test_after_an_error_copies_are_closed_too(self, how: str) -> None:
        _, fast = pair()
        twin = COPIES[how](fast)
        with pytest.raises(ValueError, match="in_features"):
            twin(torch.ones(3, K + 1))
        assert not twin.q._shared._last.open

    def test_gone_when_it_is_dense_again(self) -> None:
        _, fast = pair()
        mine = fast.register_forward_hook(lambda *args: None)
        densify_(fast)
        assert list(fast._forward_hooks) == [mine.id]
        assert not fast._forward_pre_hooks
        assert not fast._forward_hooks_always_called

    def test_gone_where_a_conversion_is_undone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sparseinfer.convert import apply

        def fails(*args: Any, **kwargs: Any) -> bool:
            raise RuntimeError("on purpose")

        monkeypatch.setattr(apply, "accepted", fails)
        dense = QKV().eval()
        with pytest.raises(RuntimeError, match="on purpose"):
            convert_(dense, example_inputs=torch.ones(3, K))
        assert type(dense.q) is nn.Linear
        assert not dense._forward_hooks
        assert not dense._forward_pre_hooks


class TestGraphs:
    def test_compile(self) -> None:
        torch._dynamo.reset()
        dense, fast = pair()
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        assert torch.equal(compiled(ints()), dense(ints()))
        assert torch.equal(compiled(ints(9)), dense(ints(9)))
        assert torch.equal(fast(ints()), dense(ints()))

    def test_export(self) -> None:
        dense, fast = pair()
        exported = torch.export.export(fast, (ints(),)).module()
        assert torch.equal(exported(ints(seed=4)), dense(ints(seed=4)))

    @pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
    def test_trace(self) -> None:
        dense, fast = pair()
        traced = torch.jit.trace(fast, (ints(),))
        assert torch.equal(traced(ints(seed=4)), dense(ints(seed=4)))


class TestContiguous:
    @pytest.mark.parametrize("function", [convert, convert_])
    def test_results_may_be_viewed(self, function: Any) -> None:
        class Viewing(QKV):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([self.q(x).view(-1), self.k(x).view(-1), self.v(x).view(-1)])

        dense = Viewing().eval()
        fast = function(copy.deepcopy(dense), example_inputs=torch.ones(3, K))
        assert all(type(part) is SharedInputLinear for part in (fast.q, fast.k, fast.v))
        assert torch.equal(fast(ints()), dense(ints()))
        assert [row.layer for row in explain(fast).rows] == ["q", "k", "v"]

    @pytest.mark.parametrize(
        "shape", [(1,), (3,), (0,), (), (1, 1), (1, 3), (3, 1), (2, 3), (1, 1, 3), (2, 0)]
    )
    @pytest.mark.parametrize("where", ["in forward", "alone", "profiled", "autocast", "a subclass"])
    def test_strides_are_those_of_the_dense_layer(self, shape: tuple[int, ...], where: str) -> None:
        class Strides(QKV):
            def forward(self, x: Tensor) -> Tensor:
                results = [self.q(x), self.k(x), self.v(x)]
                kept.append(
                    [(y.shape, y.stride(), y.storage_offset(), y.untyped_storage().nbytes()) for y in results]
                )
                return torch.cat(results, dim=-1)

        kept: list[Any] = []
        dense = Strides().eval()
        fast = convert(dense, example_inputs=torch.ones(3, K))
        x = ints(8)[: torch.Size(shape).numel()].reshape(*shape, K)
        kept.clear()
        for model in (dense, fast):
            if where == "in forward":
                model(x)
            elif where == "alone":
                model.forward(x)
            elif where == "profiled":
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
                    model(x)
            elif where == "autocast":
                with torch.autocast("cpu", torch.bfloat16):
                    model(x)
            else:
                model(x.as_subclass(Plain))
        assert kept[1] == kept[0]

    def test_bad_sizes(self) -> None:
        whole = SparseLinear.from_linear(linear(24, K))
        for sizes in ([24, 1], [24, 0], [12, -12, 24], []):
            with pytest.raises(ValueError, match="sizes: expected positive sizes that add up to 24"):
                SharedInputLinear.share(whole, sizes)


class Plain(Tensor):
    """A tensor by another name."""
