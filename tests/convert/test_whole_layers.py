"""Layers of several products stay torch's own where torch's call of the whole layer is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from convert_helpers import Script
from generators import weight
from torch import nn

from sparseinfer import convert, explain
from sparseinfer.convert.survey.recording import Recording
from sparseinfer.convert.timing import whole_layers
from sparseinfer.convert.timing.ranking import Ranking
from sparseinfer.modules import SparseLSTM, SparseMultiheadAttention


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def model(layer: nn.Module) -> nn.ModuleDict:
    for seed, matrix in enumerate(p for p in layer.parameters() if p.dim() == 2):
        matrix.mul_(weight("random", *matrix.shape, 0.8, seed=seed) != 0)
    return nn.ModuleDict({"layer": layer}).eval()


@pytest.mark.parametrize(
    ("layer", "sparse"),
    [
        (lambda: nn.LSTM(16, 32), SparseLSTM),
        (lambda: nn.MultiheadAttention(32, 4), SparseMultiheadAttention),
    ],
)
def test_what_convert_makes_of_it(script: Script, layer: Callable[[], nn.Module], sparse: type) -> None:
    dense = model(layer())
    assert type(convert(dense)["layer"]) is sparse
    script.whole_layer = "torch's whole layer is faster: 1.2x"
    fast = convert(dense)
    assert type(fast["layer"]) is type(dense["layer"])
    assert {(row.decision, row.reason, row.kernels) for row in explain(fast).rows} == {
        ("dense", script.whole_layer, ())
    }
    assert type(convert(dense, memory="compact")["layer"]) is sparse


class Rank:
    """Stands in for the measurement: what it says, and the shapes of what the calls return."""

    def __init__(self, ratio: float, is_sure: bool) -> None:
        self.ratio, self.is_sure, self.shapes = ratio, is_sure, list[tuple[int, ...]]()

    def __call__(self, calls: Any, *, budget_s: float) -> Ranking:
        results = [call()[0] for (call,) in calls.values()]
        assert len({result.shape for result in results}) == 1
        self.shapes.append(tuple(results[0].shape))
        return Ranking({"dense": 10.0, "layer": 10.0 * self.ratio}, self.is_sure)


@pytest.mark.parametrize(
    ("ratio", "is_sure", "reason"),
    [
        (0.9, True, None),
        (0.9, False, "not surely faster than torch's whole layer"),
        (1.0, True, "torch's whole layer is faster: 1.0x"),
        (2.0, False, "torch's whole layer is faster: 2.0x"),
    ],
)
def test_the_comparison(
    monkeypatch: pytest.MonkeyPatch, ratio: float, is_sure: bool, reason: str | None
) -> None:
    monkeypatch.setattr(whole_layers, "rank", rank := Rank(ratio, is_sure))
    dense, attention = nn.LSTM(16, 32, batch_first=True), nn.MultiheadAttention(32, 4)
    seen = Recording(shapes={dense: ((3, 5, 16), (1, 2, 16))})
    sparse = SparseLSTM.from_rnn(dense)
    for found in (
        whole_layers.slower_than_torch(dense, sparse, seen),
        whole_layers.slower_than_torch(dense, sparse, Recording()),
        whole_layers.slower_than_torch(attention, attention, Recording()),
    ):
        assert found == reason
    assert rank.shapes == [(1, 2, 32), (3, 5, 32), (1, 16, 32), (16, 1, 32)]
