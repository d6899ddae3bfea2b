"""The options of `convert`, said once: what they are made from, and how they may be given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch
from convert_helpers import K, N, Script, kinds, linear
from torch import Tensor, nn

from sparseinfer import ConvertOptions, SparseLinear, convert, convert_, explain, latency_table
from sparseinfer.convert import apply
from sparseinfer.convert.options import COMPACT, SPEED, ConvertKeywords, TimingKeywords

pytestmark = pytest.mark.usefixtures("script")


def test_keywords_for_type_checkers_are_those_of_the_class() -> None:
    assert set(ConvertKeywords.__annotations__) == {option.name for option in fields(ConvertOptions)}
    assert set(TimingKeywords.__annotations__) < set(ConvertKeywords.__annotations__)


@pytest.mark.parametrize("function", [convert, convert_])
def test_help_lists_them_with_their_defaults(function: Callable[..., nn.Module]) -> None:
    shown = inspect.signature(function).parameters
    assert {option.name: option.default for option in fields(ConvertOptions)}.items() <= {
        name: parameter.default for name, parameter in shown.items()
    }.items()
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in shown.values())


def test_a_table_of_latencies_takes_those_that_say_how_a_layer_is_timed() -> None:
    shown = inspect.signature(latency_table).parameters
    assert {"weights", "activations", "memory", "measure", "budget_s"} <= set(shown)
    assert not {"tokens", "fuse", "fold_batch_norm", "keywords"} & set(shown)
    assert shown["budget_s"].default == 120.0


@pytest.mark.parametrize("function", [convert, convert_, latency_table])
def test_other_keywords(function: Callable[..., Any]) -> None:
    name = function.__name__
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'weight'"):
        function(nn.Sequential(linear()), example_inputs=None, weight=torch.bfloat16)


def test_options_instead_of_keywords() -> None:
    options = ConvertOptions(tokens=[7, 3, 3], memory="compact")
    by_keywords = convert(nn.Sequential(linear()), tokens=(3, 7), memory="compact")
    by_options = convert_(nn.Sequential(linear()), options=options)
    assert kinds(by_options) == [SparseLinear]
    assert explain(by_options) == explain(by_keywords)


def test_not_both() -> None:
    with pytest.raises(TypeError, match=r"options: expected either options or keywords, got both \(fuse\)"):
        convert(nn.Sequential(linear()), options=ConvertOptions(), fuse=False)
    with pytest.raises(TypeError, match="options: expected ConvertOptions, got dict"):
        convert(nn.Sequential(linear()), options={"fuse": False})


def test_they_check_themselves() -> None:
    options = ConvertOptions(tokens=[7, 3, 3], weights=torch.bfloat16)
    assert options.tokens == (3, 7)
    assert (ConvertOptions(memory="speed").memory_limit, options.memory_limit) == (SPEED, 1.0)
    assert ConvertOptions(memory="compact").memory_limit == COMPACT
    with pytest.raises(ValueError, match="tokens: expected positive integers, got"):
        replace(options, tokens=(0,))
    with pytest.raises(ValueError, match=r"weights: expected torch.bfloat16 with these activations"):
        ConvertOptions(activations=torch.bfloat16)
    with pytest.raises(FrozenInstanceError):
        options.fuse = False  # type: ignore[misc]


def test_plainer_attempts_take_over_what_stays_the_same(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model runs once to be looked at; with the norm folded, without, and unfused are one plan more."""
    runs: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(len(x))
            return x

    dense = nn.Sequential(linear(), nn.BatchNorm1d(N), nn.ReLU(), linear(K, N))
    model = nn.Sequential(Counting(), dense).eval()
    attempts = []

    def accepted(*args: Any, last: bool) -> bool:
        attempts.append(last)
        return last

    monkeypatch.setattr(apply, "accepted", accepted)
    fast = convert(model, example_inputs=torch.ones(3, K), fold_batch_norm=True)
    assert attempts == [False, False, True]
    assert runs == [3]
    assert len(script.calls) == 3
    assert kinds(fast[1]) == [SparseLinear, nn.BatchNorm1d, nn.ReLU, SparseLinear]
