"""Times of layers as if they were pruned, scripted, and a budget of time that convert then keeps."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from convert_helpers import K, N, linear
from torch import Tensor, nn

from sparseinfer import convert, explain, prune_
from sparseinfer.convert import decisions, latency, latency_table
from sparseinfer.convert.candidates.base import Candidates
from sparseinfer.convert.timing.times import Times
from sparseinfer.ops import Layout
from sparseinfer.prune import NM, Block, LatencyBudget, Magnitude, Row, Unstructured, calibrate
from sparseinfer.prune.budgets.latency_table import DENSE


class Clock:
    """Stands in for the measurement: a nanosecond for each kept weight and token, 0.6 if dense."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, float, int]] = []

    def __call__(self, candidates: Candidates, layouts: Iterable[Layout], m: int) -> Times:
        weights = candidates.weights
        self.seen.append((candidates.title, weights.sparsity, weights.empty_blocks, m))
        us = weights.weight.numel() * m * 1e-3
        return Times(m, {"F.linear": 0.6 * us}, dict.fromkeys(layouts, (1 - weights.sparsity) * us))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(decisions, "Timer", lambda **options: clock)
    monkeypatch.setattr(latency, "Timer", lambda **options: clock)
    return clock


class Network(nn.Module):
    """Two layers of one input, two of one shape, a convolution, one not reached and one tied."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = linear(16, K, 0.0), linear(8, K, 0.0, seed=1)
        self.up, self.again = linear(K, 24, 0.0, seed=2), linear(K, 24, 0.0, seed=3)
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.unused = linear()
        self.embedding, self.tied = nn.Embedding(N, K), nn.Linear(K, N, bias=False)
        self.tied.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(torch.cat([self.q(x), self.k(x)], -1))
        hidden = hidden + self.again(hidden[..., :24] * 2)
        return self.tied(hidden) + self.conv(x[:, None].expand(-1, 8, -1)).sum(1)[:, :N]


X = torch.ones(5, K)


def model() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def test_every_layer_that_can_be_sparse_in_every_option() -> None:
    patterns = (Unstructured(), Block(4, 4), NM(2, 4))
    table = latency_table(model(), (X,), sparsities=(0.5, 0.75), patterns=patterns)
    assert list(table.us) == ["q", "k", "up", "again", "conv"]
    assert table.together == [["q", "k"]]
    options = [(s, p) for p in patterns[:2] for s in (0.5, 0.75)]
    expected = [DENSE, *options, (0.5, NM(2, 4))]
    assert all(list(options) == expected for options in table.us.values())
    tokens = {"q": 5, "k": 5, "up": 5, "again": 5, "conv": 5 * K}
    sizes = {"q": 16 * K, "k": 8 * K, "up": 24 * K, "again": 24 * K, "conv": 16 * 24}
    for fqn, options in table.us.items():
        dense = sizes[fqn] * tokens[fqn] * 1e-3
        for (sparsity, _), us in options.items():
            assert us == pytest.approx(min(0.6, 1 - sparsity) * dense, rel=1e-6)
    assert table.dense_us == pytest.approx(sum(options[DENSE] for options in table.us.values()))


def test_layers_of_one_shape_are_timed_once_and_those_of_one_input_together(clock: Clock) -> None:
    latency_table(model(), X, sparsities=(0.75,), patterns=(Unstructured(), Block(4, 4)))
    titles = [title for title, *_ in clock.seen]
    assert titles == [f"{N} x {K}"] * 3 + [f"{K} x 24"] * 3 + ["conv 16 x 24"] * 3
    for (_, dense, _, _), (_, scattered, few, _), (_, blocks, many, _) in zip(
        clock.seen[::3], clock.seen[1::3], clock.seen[2::3], strict=True
    ):
        assert dense == 0
        assert scattered == blocks == 0.75
        assert few < 0.1
        assert many == pytest.approx(0.75, abs=0.03)


def test_a_pattern_that_does_not_divide_a_layer() -> None:
    table = latency_table(model(), X, sparsities=(0.75,), patterns=(Block(16, 8), Row()))
    assert (0.75, Block(16, 8)) not in table.us["q"]  # k, of the same input, has 8 rows
    assert (0.75, Block(16, 8)) not in table.us["up"]
    assert all((0.75, Row()) in options for options in table.us.values())


def test_more_tokens_than_are_timed_count_in_proportion() -> None:
    few, many = (latency_table(model(), torch.ones(m, K), sparsities=(0.75,)) for m in (5, 1000))
    for fqn in ("q", "up"):
        for option, us in few.us[fqn].items():
            assert many.us[fqn][option] == pytest.approx(200 * us)


@pytest.mark.parametrize("speedup", [1.3, 2.0, 4.0])
def test_convert_then_takes_what_was_predicted(speedup: float) -> None:
    """The clock knows only how many zeros there are: the two agree but for rounding to blocks."""
    dense = model()
    ignore = ["unused", "tied"]
    patterns = (Unstructured(), Block(4, 4))
    table = latency_table(dense, X, sparsities=(0.5, 0.6, 0.7, 0.8, 0.9), patterns=patterns, ignore=ignore)
    stats = calibrate(dense, [torch.randn(50, K)], ignore=ignore, progress=False)
    method = Magnitude(LatencyBudget(table, speedup=speedup))
    prune_(dense, method, stats=stats, ignore=ignore, keep_masks=False)
    rows = explain(convert(dense, example_inputs=(X,), ignore=ignore)).rows
    took = sum(row.sparse_us[0] if row.decision == "sparse" else row.dense_us[0] for row in rows)
    assert took <= table.dense_us / speedup * 1.02
    assert took >= table.dense_us / speedup * 0.8


def test_the_model_is_unchanged() -> None:
    dense = model()
    before = {name: t.clone() for name, t in dense.state_dict().items()}
    latency_table(dense, X, sparsities=(0.9,))
    assert all(torch.equal(t, before[name]) for name, t in dense.state_dict().items())
    assert not any(module._forward_pre_hooks for module in dense.modules())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsities": (0.5, 1.0)}, ValueError, r"sparsities: expected a number in \[0, 1\), got 1.0"),
        ({"memory": 0}, ValueError, "memory: expected"),
        (
            {"example_inputs": torch.ones(2, K + 1)},
            ValueError,
            "example_inputs: expected inputs",
        ),
        ({"patterns": ("2:4",)}, TypeError, "patterns: expected patterns such as Block"),
    ],
)
def test_bad_arguments(options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        latency_table(model(), **{"example_inputs": X, **options})
