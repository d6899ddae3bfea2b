"""`benchmark`: two models on the same inputs. Times are there and ordered; their length is not tested."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_helpers import K, N, linear
from generators import tokens
from torch import Tensor, nn

import sparseinfer
from sparseinfer import Comparison, SparseLinear, benchmark
from sparseinfer.bench import compare
from sparseinfer.bench.compare import Side, model_nbytes
from sparseinfer.modules import PrepackedLinear


class Gives(nn.Module):
    """Whatever it is told to."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, *args: object, **kwargs: object) -> Any:
        return self.result


def compared(expected: Any, got: Any) -> Comparison:
    return benchmark(Gives(expected), Gives(got), torch.ones(1), budget_s=0)


class TestDifferences:
    def test_of_the_largest_element_and_of_the_norm(self) -> None:
        expected = torch.tensor([3.0, 4.0, 0.0])
        found = compared(expected, expected + torch.tensor([0.0, 0.0, 0.5]))
        assert found.max_abs_diff == 0.5
        assert found.max_rel_diff == pytest.approx(0.1)

    def test_equal_results(self) -> None:
        dense = nn.Sequential(linear()).eval()
        fast = nn.Sequential(SparseLinear.from_linear(dense[0]))
        found = sparseinfer.benchmark(dense, fast, tokens(3, K, integer=True), budget_s=0)
        assert (found.max_abs_diff, found.max_rel_diff) == (0.0, 0.0)
        assert found.threads == torch.get_num_threads()

    def test_of_the_worst_of_several_tensors(self) -> None:
        one = torch.ones(4)
        expected = {"a": one, "b": [one, (one, torch.arange(3))], "c": None, "d": "text"}
        got = {"a": one, "b": [one + 1, (one + 0.5, torch.arange(3) + 7)], "c": None, "d": "other"}
        found = compared(expected, got)
        assert (found.max_abs_diff, found.max_rel_diff) == (1.0, 1.0)

    def test_in_double_whatever_the_dtype(self) -> None:
        found = compared(torch.full((2,), 60000.0, dtype=torch.float16), torch.full((2,), -60000.0).half())
        assert found.max_abs_diff == 120000.0 - 2 * (60000 - float(torch.tensor(60000.0).half()))

    @pytest.mark.parametrize("where", [0, 1])
    def test_not_a_number(self, where: int) -> None:
        both = [torch.ones(3), torch.ones(3)]
        both[where][1] = math.nan
        found = compared([torch.ones(2), both[0]], [torch.ones(2), both[1]])
        assert math.isnan(found.max_abs_diff)
        assert math.isnan(found.max_rel_diff)

    def test_zeros_and_empty_tensors(self) -> None:
        found = compared([torch.zeros(2), torch.ones(0)], [torch.tensor([0.0, 2.0]), torch.ones(0)])
        assert (found.max_abs_diff, found.max_rel_diff) == (2.0, 2.0)

    @pytest.mark.parametrize(
        ("expected", "got"),
        [
            (torch.ones(3), torch.ones(4)),
            (torch.ones(3), torch.ones(3, 1)),
            (torch.ones(3), [torch.ones(3)] * 2),
            (torch.ones(3), None),
            (torch.ones(3), torch.ones(3).long()),
            (torch.arange(3), torch.arange(3)),
            (None, None),
        ],
        ids=["sizes", "dimensions", "number", "nothing", "integers", "only integers", "nothing at all"],
    )
    def test_results_that_cannot_be_compared(self, expected: Any, got: Any) -> None:
        with pytest.raises(ValueError, match="fast: expected results of shapes"):
            compared(expected, got)


class TestRuns:
    @pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"input": x}])
    def test_forms_of_inputs(self, wrap: Any) -> None:
        dense = nn.Sequential(linear()).eval()
        assert benchmark(dense, dense, wrap(torch.ones(2, K)), budget_s=0).max_abs_diff == 0

    def test_in_turns_without_gradients_as_they_are(self) -> None:
        seen: list[tuple[str, bool, bool]] = []

        class Watched(nn.Module):
            def __init__(self, name: str) -> None:
                super().__init__()
                self.name = name

            def forward(self, x: Tensor) -> Tensor:
                seen.append((self.name, torch.is_grad_enabled(), self.training))
                return x

        found = benchmark(Watched("dense").eval(), Watched("fast"), torch.ones(1), budget_s=0)
        assert found.runs == 5
        assert [name for name, _, _ in seen[-10:]] == ["dense", "fast"] * 5
        assert set(seen) == {("dense", False, False), ("fast", False, True)}

    def test_percentiles_are_ordered(self) -> None:
        dense = nn.Sequential(linear()).eval()
        found = benchmark(dense, dense, torch.ones(2, K), budget_s=0.02)
        assert found.runs >= 5
        for side in (found.dense, found.fast):
            assert 0 < side.min_ms <= side.p50_ms <= side.p99_ms
        assert found.speed_up == found.dense.p50_ms / found.fast.p50_ms

    def test_errors_of_a_model_are_its_own(self) -> None:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            benchmark(nn.Sequential(linear()), nn.Sequential(linear()), torch.ones(2, K + 1))


class TestBytes:
    def test_what_is_shared_counts_once(self) -> None:
        shared = linear()
        tied = nn.Sequential(nn.Embedding(N, K), linear(), shared, shared)
        tied[0].weight = tied[1].weight
        assert model_nbytes(tied) == 2 * (N * K + N) * 4
        assert model_nbytes(nn.BatchNorm1d(8)) == 4 * 8 * 4 + 8

    def test_of_packed_layers(self) -> None:
        sparse = SparseLinear.from_linear(linear())
        assert model_nbytes(nn.Sequential(sparse, sparse)) == sparse.nbytes
        prepacked = PrepackedLinear.from_linear(linear())
        assert model_nbytes(nn.Sequential(prepacked, nn.ReLU())) == prepacked.nbytes == (N * K + N) * 4

    def test_of_both_sides(self) -> None:
        dense = nn.Sequential(linear()).eval()
        fast = nn.Sequential(SparseLinear.from_linear(dense[0]))
        found = benchmark(dense, fast, torch.ones(2, K), budget_s=0)
        assert (found.dense.nbytes, found.fast.nbytes) == (model_nbytes(dense), model_nbytes(fast))

    def test_peak_where_the_system_tells(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(compare, "_CLEAR", tmp_path / "clear")
        (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t     128 kB\nVmRSS:\t 1 kB\n")
        monkeypatch.setattr(compare, "_STATUS", tmp_path / "status")
        assert compared(torch.ones(1), torch.ones(1)).fast.peak_rss_bytes == 128 << 10
        monkeypatch.setattr(compare, "_CLEAR", tmp_path / "no folder" / "clear")
        assert compared(torch.ones(1), torch.ones(1)).fast.peak_rss_bytes == 0


class TestReport:
    found = Comparison(Side(2.0, 3.0, 4.0, 1000, 5000), Side(1.0, 1.5, 2.0, 400, 6000), 7, 2, 0.25, 1e-6)

    def test_table(self) -> None:
        text = str(self.found)
        assert "7 runs each, 2 thread(s), 2.00x faster" in text
        for words in (("dense", "3.00", "4.00", "2.00", "1,000", "5,000"), ("fast", "1.50", "400", "6,000")):
            (line,) = (line for line in text.splitlines() if words[0] in line.split())
            assert all(word in line for word in words)
        assert "results differ by 0.25 at most, 1e-06 relative" in text
        assert self.found.table().row_count == 2

    def test_json(self) -> None:
        parsed = json.loads(self.found.to_json())
        assert parsed["dense"] == {
            "min_ms": 2.0,
            "p50_ms": 3.0,
            "p99_ms": 4.0,
            "nbytes": 1000,
            "peak_rss_bytes": 5000,
        }
        assert (parsed["speed_up"], parsed["runs"], parsed["max_abs_diff"]) == (2.0, 7, 0.25)
        assert parsed["machine"]["cpu"]
