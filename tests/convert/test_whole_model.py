"""The whole converted model against the original: what makes it slower goes back; times are scripted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convert_helpers import K, Script, assert_restored, linear
from fusion_helpers import batch_norm
from generators import tokens
from torch import Tensor, nn

from sparseinfer import SparseLinear, SparseMultiheadAttention, convert, convert_, explain
from sparseinfer.convert.timing import whole_model
from sparseinfer.convert.timing.ranking import Ranking
from sparseinfer.convert.timing.whole_model import Comparison, parts_to_leave
from sparseinfer.convert.whole import REASON
from sparseinfer.modules import FoldedLayer, SharedInputLinear

X = tokens(5, K, integer=True)
CONVERTED = (SparseLinear, SharedInputLinear)


class Deep(nn.Sequential):
    """Linears one after another, exact with integers by taking signs."""

    def __init__(self, count: int) -> None:
        super().__init__(*(linear(K, K, seed=seed) for seed in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x).sign()
        return x


class Sharing(nn.Module):
    """q, k and v of one input, and a layer after them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (linear(K, K, seed=seed) for seed in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.q(x) + self.k(x) + self.v(x)).sign())


def converted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, CONVERTED) and name]


def costs(us: dict[str, float], others: float = -1.0) -> Callable[[nn.Module], bool]:
    """A model of so many microseconds more for each converted layer, and fewer for all others."""
    return lambda model: sum(us.get(name, others) for name in converted(model)) > 0


@pytest.fixture(params=[convert, convert_])
def function(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


def run(function: Callable[..., Any], model: nn.Module, **options: Any) -> Any:
    given = copy.deepcopy(model).eval()
    fast = function(given, example_inputs=X, **options)
    with torch.no_grad():
        assert torch.equal(fast(X), model(X))
    return fast


def reasons(fast: nn.Module) -> dict[str, bool]:
    """Whether a layer went back, by its name."""
    return {row.layer: row.reason == REASON for row in explain(fast).rows}


@pytest.mark.parametrize("guilty", [{"7"}, {"0", "12"}, {"3", "4"}, {str(i) for i in range(16)}])
def test_the_guilty_layers_go_back(function: Callable[..., Any], script: Script, guilty: set[str]) -> None:
    looked = []

    def is_slower(model: nn.Module) -> bool:
        looked.append(len(converted(model)))
        return costs(dict.fromkeys(guilty, 100.0))(model)

    script.is_slower = is_slower
    fast = run(function, Deep(16))
    assert set(converted(fast)) == {str(i) for i in range(16)} - guilty
    assert reasons(fast) == {str(i): str(i) in guilty for i in range(16)}
    assert {row.decision for row in explain(fast).rows if row.layer in guilty} == {"dense"}
    assert all(type(fast[int(name)]) is nn.Linear for name in guilty)
    if len(guilty) == 1:
        assert looked == [16, 8, 8, 4, 4, 2, 2, 1, 1, 15]
    assert_restored(fast, Deep(16))


def test_what_gains_hide_is_found_all_the_same(function: Callable[..., Any], script: Script) -> None:
    """The half with the guilty layer is faster than the original; the other one is not."""
    script.is_slower = costs({"0": 5.0, "1": -30.0, "4": 26.0}, others=0.0)
    assert set(converted(run(function, Deep(8)))) == {"0", "1", "2", "3", "5", "6", "7"}


def test_overhead_everywhere(function: Callable[..., Any], script: Script) -> None:
    """Each layer costs less than can be told, all together more: all go back."""
    script.is_slower = lambda model: len(converted(model)) > 5
    fast = run(function, Deep(8))
    assert converted(fast) == []
    assert all(reasons(fast).values())


@pytest.mark.parametrize("answer", [False, None])
def test_unsure_or_without_time(function: Callable[..., Any], script: Script, answer: bool | None) -> None:
    script.is_slower = lambda model: answer
    assert len(converted(run(function, Deep(4)))) == 4


def test_time_that_ends_while_looking(function: Callable[..., Any], script: Script) -> None:
    """What could not be looked at goes back; what was found innocent does not."""
    answers = iter([True, False, True])
    script.is_slower = lambda model: next(answers, None)
    assert converted(run(function, Deep(8))) == ["0", "1", "2", "3"]


def test_linears_of_one_matrix_go_together(function: Callable[..., Any], script: Script) -> None:
    script.is_slower = costs({"q": 9.0})
    fast = run(function, Sharing())
    assert converted(fast) == ["out"]
    assert reasons(fast) == {"q": True, "k": True, "v": True, "out": False}
    assert not fast._forward_pre_hooks
    script.is_slower = costs({"out": 9.0})
    assert {"q", "k", "v"} <= set(converted(run(function, Sharing())))


def test_trials_share_results_like_the_model_itself(script: Script) -> None:
    """Linears of one matrix compute it once in the runs that are timed."""
    calls = []

    def is_slower(model: Any) -> bool:
        shared = model.q._shared
        computed = shared._computed
        shared._computed = lambda *args: calls.append(1) or computed(*args)
        with whole_model.for_a_run(model):
            model(X)
        del shared._computed
        return False

    script.is_slower = is_slower
    run(convert, Sharing())
    assert calls == [1]


def test_trials_share_the_tensors(script: Script) -> None:
    dense = nn.Sequential(linear(), nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24))).eval()
    seen = []

    def is_slower(model: Any) -> bool:
        seen.append([t.data_ptr() for t in (*model[1].parameters(), *model[1].buffers())])
        return True

    script.is_slower = is_slower
    fast: Any = convert(dense, example_inputs=X, targets="0")
    held = [t.data_ptr() for t in (*dense[1].parameters(), *dense[1].buffers())]
    assert seen == [held]
    assert not set(held) & {t.data_ptr() for t in (*fast[1].parameters(), *fast[1].buffers())}


@pytest.mark.parametrize("slower", [set(), {"0"}, {"2"}])
def test_folded_batch_norms(function: Callable[..., Any], script: Script, slower: set[str]) -> None:
    """A layer knows the batch norm of the model that it is in, whatever was tried before."""

    def is_slower(model: Any) -> bool:
        layers = {name: model[int(name)] for name in ("0", "2")}
        folds = {name: layer for name, layer in layers.items() if isinstance(layer, FoldedLayer)}
        assert all(layer.batch_norm is model[int(name) + 1] for name, layer in folds.items())
        return bool(folds.keys() & slower)

    script.is_slower = is_slower
    dense = nn.Sequential(
        linear(K, K), batch_norm(nn.BatchNorm1d, K), linear(K, K), batch_norm(nn.BatchNorm1d, K)
    )
    fast = function(copy.deepcopy(dense).eval(), example_inputs=X, fold_batch_norm=True)
    for name in ("0", "2"):
        layer, norm = fast[int(name)], fast[int(name) + 1]
        assert isinstance(layer, FoldedLayer) == (name not in slower)
        assert name in slower or layer.batch_norm is norm
    with torch.no_grad():
        assert torch.allclose(fast(X), dense.eval()(X), rtol=1e-4, atol=1e-3)


def test_an_encoder_layer_of_which_a_part_goes_back(function: Callable[..., Any], script: Script) -> None:
    """torch's own attention would call none of the layer's modules, so it may not come back by itself."""
    dense = nn.TransformerEncoderLayer(K, 4, 80, batch_first=True, dropout=0.0).eval()
    for module in (dense.linear1, dense.linear2):
        module.weight.data *= linear(*module.weight.shape).weight.data != 0
    script.is_slower = lambda model: type(model.linear1) is SparseLinear
    x = torch.randn(2, 5, K)
    fast = function(copy.deepcopy(dense), example_inputs=x)
    assert (type(fast.linear1), type(fast.linear2)) == (nn.Linear, SparseLinear)
    assert type(fast.self_attn) is SparseMultiheadAttention
    with torch.no_grad():
        assert torch.allclose(fast(x), dense(x), atol=1e-5)


@pytest.mark.parametrize("options", [{"measure": False}, {"memory": "compact"}, {"example_inputs": None}])
def test_when_it_is_not_done(script: Script, options: dict[str, Any]) -> None:
    script.is_slower = lambda model: pytest.fail("compared")
    convert(nn.Sequential(linear()).eval(), **{"example_inputs": X, **options})


def test_nothing_to_compare(script: Script) -> None:
    script.is_slower = lambda model: pytest.fail("compared")
    script.ratio = lambda layout, m: 2.0
    convert(nn.Sequential(linear()).eval(), example_inputs=X)


def test_parts_without_time_for_any() -> None:
    assert parts_to_leave([1, 2, 3], lambda parts: None) == []
    assert parts_to_leave([], lambda parts: pytest.fail("asked")) == []


class Rank:
    """Stands in for the measurement."""

    def __init__(self, ratio: float, is_sure: bool) -> None:
        self.ratio, self.is_sure, self.results = ratio, is_sure, list[list[Any]]()

    def __call__(self, calls: Any, *, budget_s: float) -> Ranking:
        self.results += [[call(), call()] for (call,) in calls.values()]
        return Ranking({"dense": 10.0, "fast": 10.0 * self.ratio}, self.is_sure)


class Growing(nn.Module):
    """Writes to a list that it is given, to a buffer and to an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor, cache: Any) -> tuple[Tensor, int]:
        self.calls += 1
        self.seen.append(1)
        cache.held.append(x)
        assert not self.training
        return torch.rand(1), len(cache.held)


class Cache:
    def __init__(self) -> None:
        self.held: list[Tensor] = []


@pytest.fixture
def equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls each tell nothing."""
    monkeypatch.setattr(whole_model, "_seconds", lambda call: 1e-3)


class TestComparison:
    @pytest.mark.parametrize(
        ("ratio", "is_sure", "slower"),
        [(1.5, True, True), (1.5, False, False), (1.01, True, False), (0.5, True, False)],
    )
    @pytest.mark.usefixtures("equal")
    def test_surely_slower_by_more_than_noise(
        self, monkeypatch: pytest.MonkeyPatch, ratio: float, is_sure: bool, slower: bool
    ) -> None:
        monkeypatch.setattr(whole_model, "rank", Rank(ratio, is_sure))
        dense = nn.Sequential(linear())
        assert Comparison(dense, (X,), 60.0).is_slower(lambda: copy.deepcopy(dense)) is slower

    @pytest.mark.usefixtures("equal")
    def test_runs_leave_no_trace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(whole_model, "rank", rank := Rank(1.0, True))
        models, cache, state = [Growing().train() for _ in range(2)], Cache(), torch.get_rng_state()
        assert Comparison(models[0], (X, cache), 60.0).is_slower(lambda: models[1]) is False
        assert [[count for _, count in results] for results in rank.results] == [[1, 1], [1, 1]]
        assert cache.held == []
        assert torch.equal(torch.get_rng_state(), state)
        assert all(model.calls == 0 and model.seen == [] and model.training for model in models)

    @pytest.mark.usefixtures("equal")
    def test_inputs_of_tensors_are_copied_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Same(nn.Module):
            def forward(self, x: Tensor) -> int:
                return x.data_ptr()

        monkeypatch.setattr(whole_model, "rank", rank := Rank(1.0, True))
        Comparison(Same(), {"x": X}, 60.0).is_slower(Same)
        assert [a == b for a, b in rank.results] == [True, True]
        assert X.data_ptr() not in {address for results in rank.results for address in results}

    def test_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A call of two seconds by a clock that only calls advance."""
        now = [0.0]

        class Slow(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                now[0] += 2.0
                return x

        monkeypatch.setattr(whole_model.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(whole_model, "rank", lambda calls, budget_s: pytest.fail("measured"))
        assert Comparison(Slow(), X, 60.0).is_slower(Slow) is None
        assert now[0] == 12.0  # three calls each
        assert Comparison(Slow(), X, 60.0).is_slower(nn.Identity) is False
        comparison = Comparison(Slow(), X, 0.0)
        now[0] += 1.0
        assert comparison.is_slower(lambda: pytest.fail("copied")) is None

    def test_a_model_that_cannot_be_called_so_often(self) -> None:
        class Once(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise RuntimeError("again")

        assert Comparison(Once(), X, 60.0).is_slower(Once) is None
        assert Comparison(nn.ReLU(), X, 60.0).is_slower(lambda: copy.deepcopy(1 // 0)) is None
