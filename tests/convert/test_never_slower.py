"""A plan never loses: at no token count is it slower than the best dense way; times are scripted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from convert_helpers import Script, kinds, linear
from generators import tokens, weight
from torch import Tensor, nn

from sparseinfer import SparseLinear, convert, densify_, explain
from sparseinfer.convert import whole
from sparseinfer.convert.candidates.any_dtype import AnyDtype
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.convert.options import SPEED
from sparseinfer.convert.plan import Plan, plan
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.convert.timing.times import Times
from sparseinfer.convert.whole import DENSE_REASON, REASON
from sparseinfer.modules import PrepackedLinear, SharedInputLinear, SparseOrDenseLinear
from sparseinfer.ops import Layout, token_limits
from sparseinfer.ops.dense import PLAIN, PREPACKED, PREPACKED_BF16

WAYS = (PLAIN, PREPACKED, PREPACKED_BF16)
COUNTS = (1, 3, 8, 16, 40, 128)
EQUAL = 1.02


def candidates(sparsity: float) -> AnyDtype:
    exact = Weights(weight("random", 48, 64, sparsity), None)
    rounded = exact.rounded(torch.bfloat16)
    assert isinstance(rounded, Weights)
    return AnyDtype(
        [
            LinearCandidates(exact, exact, torch.float32),
            LinearCandidates(exact, rounded, torch.float32, torch.bfloat16),
        ]
    )


class Drawn:
    """Stands in for the timer: every time is drawn at random, and remembered."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._us: dict[tuple[object, int], float] = {}

    def us(self, name: object, m: int) -> float:
        return self._us.setdefault((name, m), self._random.choice([1.0, 1.01, 1.5, 3.0]) * 10)

    def __call__(self, of: AnyDtype, layouts: Any, m: int) -> Times:
        dense = {name: self.us(name, m) for name in WAYS}
        return Times(m, dense, {layout: self.us(layout, m) * 0.8 for layout in layouts})


def worst(ratios: Mapping[int, float]) -> float:
    return max(EQUAL, *ratios.values())


def taken_at(planned: Plan, m: int) -> str | Layout:
    """What the plan runs for so many tokens, read from its buckets."""
    if not planned.buckets:
        return planned.dense_way
    at = next(i for i, b in enumerate(planned.buckets) if b.max_tokens is None or m <= b.max_tokens)
    if at in planned.dense_at:
        return planned.dense_way
    chosen = planned.chosen[[times.tokens for times in planned.times].index(m)]
    assert isinstance(chosen, Layout)
    assert chosen.kernel(m) == planned.buckets[at].kernel
    return chosen


@pytest.mark.parametrize("memory", [0.4, 1.0, 1.7, SPEED])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_no_token_count_loses(sparsity: float, memory: float) -> None:
    of = candidates(sparsity)
    limit = memory * of.dense_weights.weight.nbytes
    for seed in range(60):
        counts = tuple(sorted(random.Random(seed).sample(COUNTS, 3)))
        planned = plan(of, counts, Drawn(seed), memory, WAYS)  # type: ignore[arg-type]
        times = {each.tokens: each for each in planned.times}
        ratios = {m: times[m].us(taken_at(planned, m)) / min(times[m].dense.values()) for m in counts}
        for name in WAYS:
            assert worst(ratios) <= worst({m: times[m].ratio(name) for m in counts})
        for layout in set.intersection(*(set(each.sparse) for each in times.values())):
            for variant in of.variants:
                if variant.holds(layout) and sum(p.nbytes for p in variant.packed(layout)) <= limit:
                    assert worst(ratios) <= worst({m: times[m].ratio(layout) for m in counts})
        held = sum(packed.nbytes for packings in planned.packings for packed in packings)
        if planned.buckets:
            assert held + (of.dense_weights.weight.nbytes if planned.dense_at else 0) <= limit
        if memory == SPEED:
            assert worst(ratios) <= best_of_both(of, times)


def best_of_both(of: AnyDtype, times: Mapping[int, Times]) -> float:
    """The worst ratio of the best plan with one dense way and layouts of one dtype and format."""
    limits = [limit or 10**9 for limit in token_limits("cpu")]
    buckets = [[m for m in times if low < m <= high] for low, high in itertools.pairwise([0, *limits])]
    plans = []
    for name, variant, form in itertools.product(WAYS, of.variants, ("csr", "bsr")):
        by_bucket: list[float] = []
        for counts in filter(None, buckets):
            layouts = [x for x in times[counts[0]].sparse if x.format == form and variant.holds(x)]
            each = [
                x for x in [name, *layouts] if isinstance(x, str) or all(x in times[m].sparse for m in counts)
            ]
            by_bucket.append(min(max(times[m].ratio(x) for m in counts) for x in each))
        plans.append(max(EQUAL, *by_bucket))
    return min(plans)


def few_gain(layout: Layout, m: int) -> float:
    return 0.5 if m <= 4 else 1.5


def test_what_loses_somewhere_stays_dense_within_the_dense_bytes(script: Script) -> None:
    script.ratio = few_gain
    fast = convert(nn.Sequential(linear()), tokens=(1, 128))
    (row,) = explain(fast).rows
    assert kinds(fast) == [nn.Linear]
    assert row.reason.startswith("dense is faster: 10.0 us against 15.0 us")
    assert "; 2.0x at m=1 with memory=" in row.reason
    memory = float(row.reason.split("memory=")[1].split(",")[0])
    assert kinds(convert(nn.Sequential(linear()), tokens=(1, 128), memory=memory)) == [SparseOrDenseLinear]


class TestBoth:
    """A layer that holds packings and the dense weight."""

    @pytest.fixture(params=[PLAIN, PREPACKED])
    def layer(self, script: Script, request: pytest.FixtureRequest) -> nn.Sequential:
        script.ratio = few_gain
        script.dense = lambda m: {PLAIN: 10.0 if request.param == PLAIN else 20.0, PREPACKED: 10.5}
        return self.converted(nn.Sequential(linear(), nn.ReLU()).eval())

    @staticmethod
    def converted(dense: nn.Module, **options: Any) -> Any:
        return convert(dense, tokens=(1, 128), memory="speed", **options)

    def test_each_serves_its_token_counts(
        self, layer: nn.Sequential, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dense = nn.Sequential(linear(), nn.ReLU()).eval()
        both = layer[0]
        assert isinstance(both, SparseOrDenseLinear)
        ran: list[int] = []
        run = SparseLinear.activated
        monkeypatch.setattr(
            SparseLinear, "activated", lambda self, x, name: (ran.append(len(x)), run(self, x, name))[1]
        )
        for m in (0, 1, 4, 5, 128):
            x = tokens(m, 40, integer=True)
            with torch.no_grad():
                assert torch.equal(layer(x), dense(x))
        assert ran == [0, 1, 4]

    def test_it_is_one_weight(self, layer: nn.Sequential) -> None:
        both, alone = layer[0], convert(nn.Sequential(linear()), tokens=(1,))[0]
        assert type(alone) is SparseLinear
        state, expected = both.state_dict(), alone.state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], expected[name]) for name in state)
        assert both.nbytes >= alone.nbytes + linear().weight.nbytes
        assert explain(layer).rows[0].nbytes == both.nbytes

    def test_another_weight_and_bias(self, layer: nn.Sequential) -> None:
        both, other = layer[0], linear(seed=5)
        x = tokens(128, 40, integer=True)
        both.load_state_dict(convert(nn.Sequential(other), tokens=(1,))[0].state_dict())
        with torch.no_grad():
            assert torch.equal(both(x), other(x))
            both.bias = nn.Parameter(torch.zeros_like(both.bias), requires_grad=False)
            assert torch.equal(both(x), nn.functional.linear(x, other.weight))

    @pytest.mark.parametrize("copied", ["copy", "pickle"])
    def test_copies(self, layer: nn.Sequential, copied: str) -> None:
        import copy
        import pickle

        both = copy.deepcopy(layer) if copied == "copy" else pickle.loads(pickle.dumps(layer))
        for m in (1, 128):
            x = tokens(m, 40, integer=True)
            with torch.no_grad():
                assert torch.equal(both(x), layer(x))

    def test_back(self, layer: nn.Sequential) -> None:
        restored = densify_(layer)[0]
        assert type(restored) is nn.Linear
        assert torch.equal(restored.weight, linear().weight)

    def test_gradients_are_refused(self, layer: nn.Sequential) -> None:
        for m in (1, 128):
            with pytest.raises(RuntimeError, match="gradient"):
                layer(torch.ones(m, 40, requires_grad=True))

    def test_graphs_are_sparse(self, layer: nn.Sequential) -> None:
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        x = tokens(128, 40, integer=True)
        with torch.no_grad():
            assert torch.equal(compiled(x), layer(x))

    def test_explained(self, layer: nn.Sequential) -> None:
        (row,) = explain(layer).rows
        assert row.decision == "sparse"
        assert row.kernels[-1][1] in WAYS
        assert row.units[-1] == "torch"
        assert row.reason.startswith("2.")
        assert row.reason.endswith("with a dense copy, with relu")

    def test_linears_of_one_input(self, script: Script) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = linear(), linear(seed=1)

            def forward(self, x: Tensor) -> Tensor:
                return self.a(x) + self.b(x)

        script.ratio = few_gain
        dense = Two().eval()
        fast = convert(dense, example_inputs=tokens(128, 40), tokens=(1,), memory="speed")
        assert isinstance(fast.a, SharedInputLinear)
        assert isinstance(fast.a.whole, SparseOrDenseLinear)
        for m in (2, 128):
            x = tokens(m, 40, integer=True)
            with torch.no_grad():
                assert torch.equal(fast(x), dense(x))

    def test_bad_arguments(self, layer: nn.Sequential) -> None:
        packings = [layer[0].packing_0]
        with pytest.raises(ValueError, match=r"dense_way: expected one of F\.linear, .*, got '2:4'"):
            SparseOrDenseLinear(packings, dense_way="2:4", dense_at=[0])
        with pytest.raises(ValueError, match=r"dense_at: expected numbers of . buckets, got \[9\]"):
            SparseOrDenseLinear(packings, dense_way=PLAIN, dense_at=[9])


class TestWholeModel:
    """Compared with its best dense form, too."""

    @staticmethod
    def dense() -> nn.Sequential:
        return nn.Sequential(linear(40, 40), nn.Tanh(), linear(40, 40, seed=1)).eval()

    @pytest.fixture(autouse=True)
    def faster(self, script: Script) -> None:
        script.dense = lambda m: {PLAIN: 30.0, PREPACKED: 10.0}

    def test_the_dense_form_is_prepacked(self, script: Script) -> None:
        fast = convert(self.dense(), example_inputs=tokens(3, 40))
        assert kinds(fast)[::2] == [SparseLinear] * 2
        assert kinds(script.best_dense)[::2] == [PrepackedLinear] * 2

    def test_parts_that_lose_to_it_become_it(self, script: Script) -> None:
        script.than_dense = lambda model: isinstance(model[2], SparseLinear)
        fast = convert(self.dense(), example_inputs=tokens(3, 40))
        assert kinds(fast)[::2] == [SparseLinear, PrepackedLinear]
        first, last = explain(fast).rows
        assert (first.decision, last.decision, last.reason) == ("sparse", "prepacked", DENSE_REASON)
        assert last.nbytes == fast[2].nbytes
        x = tokens(3, 40)
        with torch.no_grad():
            assert torch.allclose(fast(x), self.dense()(x), atol=1e-4)

    def test_then_with_the_original(self, script: Script) -> None:
        script.than_dense = lambda model: isinstance(model[2], SparseLinear)
        script.is_slower = lambda model: isinstance(model[2], PrepackedLinear)
        fast = convert(self.dense(), example_inputs=tokens(3, 40))
        assert kinds(fast)[::2] == [SparseLinear, nn.Linear]
        assert explain(fast).rows[1].reason == REASON

    def test_without_memory_for_copies(self, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(whole, "free_bytes", lambda: 0)
        script.than_dense = lambda model: True
        assert kinds(convert(self.dense(), example_inputs=tokens(3, 40)))[::2] == [SparseLinear] * 2
