"""Linears made sparse one by one: what is decided, and that the results are those of the dense layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convert_helpers import Script, linear

from sparseinfer.convert import ConvertOptions, one_by_one
from sparseinfer.convert.candidates.beside_own import BesideOwn, OwnProduct
from sparseinfer.convert.one_by_one import OneByOne
from sparseinfer.convert.timing import timer
from sparseinfer.convert.timing.ranking import Ranking
from sparseinfer.modules import SparseLinear
from sparseinfer.ops.dense import PLAIN

OWN = OwnProduct("server", lambda weight: lambda x: x @ weight.T, call_us=1.0, choice_us=1.0)


@pytest.fixture
def script(script: Script, monkeypatch: pytest.MonkeyPatch) -> Script:
    script.dense = lambda m: {PLAIN: 20.0, "server": 10.0}
    monkeypatch.setattr(one_by_one, "Timer", lambda **options: script)
    return script


def test_a_layer_that_is_faster_sparse(script: Script) -> None:
    layer = linear()
    made = OneByOne(ConvertOptions(tokens=(1, 32)), 0, OWN).sparse(layer)
    assert made is not None
    assert isinstance(made.layer, SparseLinear)
    assert not made.own_at
    assert {m for _, m in script.calls} == {1, 32}
    x = torch.randint(-4, 5, (7, layer.in_features)).float()
    with torch.no_grad():
        assert torch.equal(made.layer(x), layer(x))


def test_a_layer_that_is_faster_dense(script: Script) -> None:
    script.ratio = lambda layout, m: 1.5
    assert OneByOne(ConvertOptions(), 0, OWN).sparse(linear()) is None


@pytest.mark.parametrize(("ratio", "is_sparse"), [(0.89, True), (0.95, False)])
def test_a_call_of_ours_takes_longer_in_the_server(script: Script, ratio: float, is_sparse: bool) -> None:
    """Of 10 us, as the server's own, and one more."""
    script.ratio = lambda layout, m: ratio
    assert (OneByOne(ConvertOptions(), 0, OWN).sparse(linear()) is not None) == is_sparse


@pytest.mark.parametrize(("own_us", "is_sparse"), [(100.0, True), (10.0, False)])
def test_with_memory_for_both_a_layer_is_sparse_for_few_tokens_only(
    script: Script, own_us: float, is_sparse: bool
) -> None:
    """Where the server's own is inside a layer of ours, the choice takes longer."""
    script.dense = lambda m: {PLAIN: 200.0, "server": 10.0 if m == 1 else own_us}
    script.ratio = lambda layout, m: 0.5 if m == 1 else 15.0
    assert OneByOne(ConvertOptions(tokens=(1, 32)), 0, OWN).sparse(linear()) is None
    made = OneByOne(ConvertOptions(tokens=(1, 32), memory=2), 0, OWN).sparse(linear())
    assert (made is not None) == is_sparse
    assert made is None or made.own_at == (1,)


@pytest.mark.parametrize(("choice_us", "is_sparse"), [(3.5, True), (5.0, False)])
def test_a_layer_that_holds_both_takes_the_choice_too(
    script: Script, choice_us: float, is_sparse: bool
) -> None:
    """For one token it takes 5 us, one of its call and the choice, the server's own layer 10."""
    script.dense = lambda m: {PLAIN: 2000.0, "server": 10.0 if m == 1 else 1000.0}
    script.ratio = lambda layout, m: 0.5 if m == 1 else 150.0
    own = replace(OWN, choice_us=choice_us)
    made = OneByOne(ConvertOptions(tokens=(1, 32), memory=2), 0, own).sparse(linear())
    assert (made is not None) == is_sparse


def test_a_layer_that_chooses_nothing_does_not_take_the_choice(script: Script) -> None:
    """Packings alone never lose, with the server's own for many tokens they would."""
    script.dense = lambda m: {PLAIN: 200.0, "server": 10.0}
    script.ratio = lambda layout, m: 0.5 if m == 1 else 0.91
    own = replace(OWN, choice_us=6.0)
    made = OneByOne(ConvertOptions(tokens=(1, 32), memory=2), 0, own).sparse(linear())
    assert made is not None
    assert not made.own_at


def test_the_servers_product_is_timed_as_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BesideOwn] = []

    def time(candidates: BesideOwn, layouts: object, tokens: int, *, cold: bool) -> Ranking:
        seen.append(candidates)
        return real(candidates, layouts, tokens, cold=cold)

    real = timer.time_candidates
    monkeypatch.setattr(timer, "time_candidates", time)
    OneByOne(ConvertOptions(tokens=(1,)), 0, OWN).sparse(linear())
    candidates = seen[0]
    assert candidates.dense_names[-1] == "server"
    assert candidates.nbytes("server") == candidates.dense_weights.weight.nbytes
    assert candidates.predict("server", 1) == min(candidates.predict(n, 1) for n in candidates.dense_names)
    ways = candidates.dense(3)
    assert torch.allclose(ways["server"]()(), ways[PLAIN]()() - candidates.dense_weights.bias)


def test_where_memory_is_to_be_small_a_layer_is_packed_whatever_it_takes(script: Script) -> None:
    script.ratio = lambda layout, m: 1.5
    assert OneByOne(ConvertOptions(memory="compact"), 0, OWN).sparse(linear()) is not None


def test_a_layer_without_zeros_is_not_timed(script: Script) -> None:
    assert OneByOne(ConvertOptions(), 0, OWN).sparse(linear(sparsity=0.0)) is None
    assert not script.calls


def test_a_layer_that_no_kernel_takes(script: Script) -> None:
    assert OneByOne(ConvertOptions(), 0, OWN).sparse(linear().double()) is None


@pytest.mark.parametrize(("nbytes", "cold"), [(1 << 10, False), (1 << 40, True)])
def test_a_large_model_is_timed_with_weights_from_memory(
    nbytes: int, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(one_by_one, "Timer", lambda **options: given.update(options))
    OneByOne(ConvertOptions(budget_s=3.0, measure=False), nbytes, OWN)
    assert given == {"measure": False, "budget_s": 3.0, "cold": cold}
