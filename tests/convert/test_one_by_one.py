"""Linears made sparse one by one: what is decided, and that the results are those of the dense layers."""

from __future__ import annotations

import pytest
import torch
from convert_helpers import Script, linear

from sparseinfer.convert import ConvertOptions, one_by_one
from sparseinfer.convert.one_by_one import OneByOne
from sparseinfer.modules import SparseLinear, SparseOrDenseLinear


@pytest.fixture
def script(script: Script, monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(one_by_one, "Timer", lambda **options: script)
    return script


def test_a_layer_that_is_faster_sparse(script: Script) -> None:
    layer = linear()
    made = OneByOne(ConvertOptions(tokens=(1, 32)), 0).sparse(layer)
    assert isinstance(made, SparseLinear)
    assert {m for _, m in script.calls} == {1, 32}
    x = torch.randint(-4, 5, (7, layer.in_features)).float()
    with torch.no_grad():
        assert torch.equal(made(x), layer(x))


def test_a_layer_that_is_faster_dense(script: Script) -> None:
    script.ratio = lambda layout, m: 1.5
    assert OneByOne(ConvertOptions(), 0).sparse(linear()) is None


def test_with_memory_for_both_a_layer_is_sparse_for_few_tokens_and_dense_for_many(script: Script) -> None:
    script.ratio = lambda layout, m: 0.5 if m == 1 else 1.5
    assert OneByOne(ConvertOptions(tokens=(1, 32)), 0).sparse(linear()) is None
    made = OneByOne(ConvertOptions(tokens=(1, 32), memory=2), 0).sparse(linear())
    assert isinstance(made, SparseOrDenseLinear)
    assert made.dense_at == (1,)


def test_a_layer_without_zeros_is_not_timed(script: Script) -> None:
    assert OneByOne(ConvertOptions(), 0).sparse(linear(sparsity=0.0)) is None
    assert not script.calls


def test_a_layer_that_no_kernel_takes(script: Script) -> None:
    assert OneByOne(ConvertOptions(), 0).sparse(linear().double()) is None


@pytest.mark.parametrize(("nbytes", "cold"), [(1 << 10, False), (1 << 40, True)])
def test_a_large_model_is_timed_with_weights_from_memory(
    nbytes: int, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(one_by_one, "Timer", lambda **options: given.update(options))
    OneByOne(ConvertOptions(budget_s=3.0, measure=False), nbytes)
    assert given == {"measure": False, "budget_s": 3.0, "cold": cold}
