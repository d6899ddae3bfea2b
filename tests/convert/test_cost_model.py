"""The cost model: what it predicts from the rates of a machine, whichever that is."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from convert_helpers import linear
from torch import nn

from sparseinfer import convert, explain, ops
from sparseinfer._rates import Rates
from sparseinfer.convert.candidates import cost_model
from sparseinfer.convert.candidates.cost_model import (
    COSTS,
    DENSE_COSTS,
    Case,
    Shape,
    features,
    predict_dense,
    predict_sparse,
)
from sparseinfer.ops.dense import PLAIN, PREPACKED

MACHINE = Rates(
    clock=4.0,
    units={"fma": 100.0, "dot": 200.0, "vnni": 400.0},
    reads=((1 << 15, 400.0), (1 << 20, 200.0), (1 << 25, 100.0), (1 << 26, 25.0)),
    private_bytes=1 << 20,
)
CASE = Case(n=1024, k=2048, sparsity=0.8, tokens=16)
# New kernels are unknown until the model is fitted anew.
KNOWN = [
    row
    for row in ops.kernels_at(ops.active_isa())
    if row.is_planned and row.native and cost_model._row(row.base_name, ops.active_isa()) is not None
]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Rates]:
    """The rates of each level, which a test may change."""
    by_level = dict.fromkeys(("default",), MACHINE)
    monkeypatch.setattr(cost_model, "rates", lambda isa: by_level.get(isa, by_level["default"]))
    return by_level


def us(row: ops.KernelInfo, case: Case, panel: int = 0) -> float:
    return predict_sparse(row.base_name, panel, row.unit, case, ops.active_isa())


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("tokens", [1, 4, 16, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_candidate_is_known_for_every_layer(dtype: torch.dtype, tokens: int, sparsity: float) -> None:
    layouts = ops.candidate_layouts("cpu", dtype, dtype, tokens, sparsity)
    known = {row.base_name for row in KNOWN}
    assert {layout.kernel(tokens) for layout in layouts} & known


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.base_name)
class TestKernels:
    def test_finite_and_monotone(self, row: ops.KernelInfo) -> None:
        for n, k in ((1, 1), (768, 3072), (11008, 4096), (100_000, 50_000)):
            for sparsity in (0.0, 0.3, 0.65, 0.999, 1.0):
                case = Case(n, k, sparsity, 1)
                by_tokens = [us(row, replace(case, tokens=m)) for m in (1, 2, 4, 15, 16, 17, 64, 100, 4096)]
                assert all(0 <= t < math.inf for t in by_tokens)
                assert by_tokens == sorted(by_tokens)
        by_sparsity = [us(row, replace(CASE, sparsity=s)) for s in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)]
        assert by_sparsity == sorted(by_sparsity, reverse=True)
        assert us(row, replace(CASE, n=2048)) > us(row, CASE)
        assert us(row, replace(CASE, threads=4)) < us(row, CASE)
        assert us(row, replace(CASE, cold=True)) >= us(row, CASE)

    def test_a_faster_machine_takes_less(self, row: ops.KernelInfo, machine: dict[str, Rates]) -> None:
        slow = us(row, CASE)
        machine["default"] = Rates(
            clock=8.0,
            units={"fma": 200.0, "dot": 400.0, "vnni": 800.0},
            reads=tuple((size, 2 * rate) for size, rate in MACHINE.reads),
            private_bytes=1 << 20,
        )
        fast = us(row, CASE)
        # Only the call itself is as long as before.
        assert slow / 2 <= fast < slow

    def test_a_unit_that_the_level_lacks(self, row: ops.KernelInfo, machine: dict[str, Rates]) -> None:
        machine["default"] = replace(MACHINE, units={})
        assert us(row, CASE) == math.inf


@pytest.mark.parametrize("way", [PLAIN, PREPACKED])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_is_finite_and_monotone(way: str, dtype: str) -> None:
    for n, k in ((1, 1), (768, 3072), (11008, 4096)):
        by_tokens = [predict_dense(way, dtype, Case(n, k, 0.5, m)) for m in (1, 4, 16, 64, 128, 1000)]
        assert all(0 < t < math.inf for t in by_tokens)
    by_threads = [predict_dense(way, dtype, replace(CASE, threads=t)) for t in (1, 2, 8)]
    assert by_threads == sorted(by_threads, reverse=True)
    # Zeros make no difference to it.
    assert predict_dense(way, dtype, CASE) == predict_dense(way, dtype, replace(CASE, sparsity=0.1))


def test_dense_bf16_runs_on_tiles_where_there_are_some(machine: dict[str, Rates]) -> None:
    case = Case(4096, 4096, 0.0, 128)
    slow = predict_dense(PREPACKED, "bfloat16", case)
    assert cost_model.dense_unit("bfloat16", MACHINE) == "dot"
    machine["default"] = replace(MACHINE, units={**MACHINE.units, "tile_bf16": 2000.0})
    assert cost_model.dense_unit("bfloat16", machine["default"]) == "tile_bf16"
    assert cost_model.dense_unit("float32", machine["default"]) == "fma"
    assert predict_dense(PREPACKED, "bfloat16", case) < slow
    assert predict_dense(PREPACKED, "float32", case) == predict_dense(PREPACKED, "float32", case)


def test_unknown_ways_and_kernels() -> None:
    assert predict_dense("unheard of", "float32", CASE) == math.inf
    assert predict_dense(PLAIN, "int8", CASE) == math.inf
    assert predict_sparse("unheard of", 0, "fma", CASE, ops.active_isa()) == math.inf
    assert predict_sparse("spmm_sell_f32_r16", 17, "fma", CASE, ops.active_isa()) == math.inf


class TestTerms:
    """By hand, on a machine whose rates are round numbers."""

    def by_cost(self, case: Case, shape: Shape, nbytes: float) -> dict[str, float]:
        return dict(zip(COSTS, features(case, shape, nbytes, "fma", MACHINE), strict=True))

    def test_bytes(self) -> None:
        case = Case(n=64, k=128, sparsity=0.5, tokens=2)
        terms = self.by_cost(case, Shape(), 1 << 20)
        # At 200 GB/s, all of it private; x and y are small.
        assert terms["packing"] == pytest.approx((1 << 20) / 200e3)
        assert terms["far packing"] == 0
        assert terms["x and y"] == pytest.approx(2 * (64 + 128) * 4 / 400e3)
        assert terms["x again"] == 0
        beyond = self.by_cost(case, Shape(), 1 << 25)
        assert beyond["packing"] == pytest.approx((1 << 25) / 100e3)
        assert beyond["far packing"] == pytest.approx(((1 << 25) - (1 << 20)) / 100e3)
        cold = self.by_cost(replace(case, cold=True), Shape(), 1 << 20)
        assert cold["packing"] == cold["far packing"] == pytest.approx((1 << 20) / 25e3)
        # Two threads read half each, which fits their caches.
        two = self.by_cost(replace(case, threads=2), Shape(), 1 << 21)
        assert two["packing"] == pytest.approx((1 << 21) / 200e3)

    def test_x_that_does_not_stay_in_the_first_cache(self) -> None:
        case = Case(n=64, k=1 << 15, sparsity=0.5, tokens=16)
        terms = self.by_cost(case, Shape(x_tokens=8), 1.0)
        # 8 tokens are 1 MiB, read twice for each of 64 rows, at 200 GB/s instead of 400.
        assert terms["x again"] == pytest.approx(64 * 2 * (1 << 20) * (1 / 200e3 - 1 / 400e3))

    def test_decode_and_multiply(self) -> None:
        case = Case(n=100, k=1000, sparsity=0.75, tokens=20)
        terms = self.by_cost(case, Shape(pass_tokens=8, vector_tokens=16, group=2), 1.0)
        assert terms["positions"] == pytest.approx(100_000 * 3 / 4e3)
        assert terms["groups"] == pytest.approx(100_000 * (1 - 0.75**2) * 3 / 4e3)
        assert terms["values"] == pytest.approx(25_000 * 3 / 4e3)
        assert terms["steps"] == pytest.approx(25_000 * 32 / 100e3)
        padded = self.by_cost(case, Shape(pass_tokens=8, vector_tokens=16, counts_bytes=True), 4e5)
        assert padded["values"] == pytest.approx(4e5 * 3 / 4e3)

    def test_tiles_multiply_zeros_too(self) -> None:
        case = Case(n=100, k=1000, sparsity=0.75, tokens=20)
        terms = self.by_cost(case, Shape(vector_tokens=16, fills_zeros=True), 1.0)
        assert terms["steps"] == pytest.approx(100_000 * 32 / 100e3)


class TestTiles:
    """Of the unit that no machine at hand has: computed from cycles, not fitted."""

    ON_TILES = replace(MACHINE, units={**MACHINE.units, "tile_bf16": 2048.0})

    @pytest.fixture(autouse=True)
    def tiles(self, machine: dict[str, Rates]) -> None:
        machine["default"] = self.ON_TILES

    def us(self, name: str, case: Case) -> float:
        return predict_sparse(name, 0, "tile_bf16", case, "amx")

    def test_they_are_marked(self) -> None:
        rows = cost_model._model()["kernels"]["amx"]
        assert {name for name, row in rows.items() if row.get("computed")} == set(rows)
        assert "spmm_tilemap_bf16_t16" in rows

    def test_expansion_takes_its_cycles_once(self) -> None:
        """36 a tile of 512 weights for 16 tokens, 64 where four products of 16 cycles each take longer."""
        case = Case(n=2048, k=2048, sparsity=0.8, tokens=16)
        tile_us = 1e-3 / MACHINE.clock * case.n * case.k / 512
        one, four = (self.us("spmm_tilemap_bf16_t16", replace(case, tokens=m)) for m in (16, 64))
        assert 36 * tile_us < one < 1.5 * 36 * tile_us
        assert 64 * tile_us < four < 1.5 * 64 * tile_us

    def test_few_zeros_win_nothing_and_many_do(self) -> None:
        """Beside dense tiles: bytes decide for few tokens, and nothing for many."""
        case = Case(n=8192, k=8192, sparsity=0.8, tokens=16)
        few = [self.us("spmm_tilemap_bf16_t16", replace(case, sparsity=s)) for s in (0.5, 0.7, 0.9)]
        assert few == sorted(few, reverse=True)
        assert few[-1] < predict_dense(PREPACKED, "bfloat16", case)

    def test_blocks_are_multiplied_alone(self) -> None:
        case = Case(n=4096, k=4096, sparsity=0.8, tokens=128)
        blocks, bitmap = (self.us(name, case) for name in ("spmm_bsr_bf16_r4", "spmm_tilemap_bf16_t16"))
        assert blocks < bitmap / 2


class TestLevels:
    """Kernels of a level that was never fitted have the costs of the nearest one that was."""

    @pytest.fixture(autouse=True)
    def model(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        rows = [type("Row", (), {"isa": isa}) for isa in ("scalar", "avx2", "avx512", "avx512bf16", "amx")]
        monkeypatch.setattr(cost_model, "kernels", lambda: rows)

        def row(call: float) -> dict[str, Any]:
            return {"shape": {}, "costs": [call, *[0.0] * (len(COSTS) - 1)], "bytes": [1.0, 1.0]}

        model = {
            "machines": [{"cpu": "test"}],
            "sparsities": [0.5, 0.8],
            "tokens": [1, 16],
            "dense": {"float32 way": [[2.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 1.0]]},
            "kernels": {
                "avx2": {"both": row(2), "old": row(3)},
                "avx512bf16": {"both": row(5), "new": row(7)},
            },
        }
        monkeypatch.setattr(cost_model, "_model", lambda: model)
        return model

    @pytest.mark.parametrize(
        ("isa", "name", "expected"),
        [
            ("avx2", "both", 2),
            ("avx512", "both", 5),
            ("scalar", "both", 2),
            ("amx", "both", 5),
            ("amx", "old", 3),
            ("avx512bf16", "old", 3),
            ("avx2", "new", 7),
            ("amx", "unheard of", math.inf),
        ],
    )
    def test_the_nearest(self, isa: str, name: str, expected: float) -> None:
        assert predict_sparse(name, 0, "fma", CASE, isa) == expected

    def test_its_own_first(self, model: dict[str, Any]) -> None:
        model["kernels"]["amx"] = {"both": {**model["kernels"]["avx2"]["both"], "costs": [11] + [0] * 8}}
        assert predict_sparse("both", 0, "fma", CASE, "amx") == 11
        assert predict_sparse("new", 0, "fma", CASE, "amx") == 7
        assert predict_sparse("both", 0, "fma", CASE, "avx512bf16") == 5

    def test_a_level_of_another_family(self, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [type("Row", (), {"isa": isa}) for isa in ("scalar", "neon")]
        monkeypatch.setattr(cost_model, "kernels", lambda: rows)
        assert predict_sparse("both", 0, "fma", CASE, "neon") == 5

    def test_dense_between_and_beyond(self) -> None:
        def dense(tokens: int) -> float:
            return predict_dense("way", "float32", replace(CASE, n=100, k=1000, tokens=tokens))

        # By the costs at 1 token 2 us, by those at 16 tokens 4 us and 1 for each token.
        assert dense(1) == pytest.approx(2.0)
        assert dense(16) == pytest.approx(20.0)
        assert dense(4) == pytest.approx(math.sqrt(2 * (4 + 4)))
        assert dense(160) == pytest.approx(4 + 160)

    def test_no_dense_product_is_faster_than_its_weight_is_read(self, machine: dict[str, Rates]) -> None:
        machine["default"] = replace(MACHINE, units={"fma": 1e9})
        assert predict_dense("way", "float32", replace(CASE, cold=True)) == pytest.approx(
            1024 * 2048 * 4 / 25e3
        )


def test_the_file_says_where_it_comes_from() -> None:
    model = cost_model._model()
    assert model["costs"] == list(COSTS)
    assert model["dense costs"] == list(DENSE_COSTS)
    for machine in cost_model.origin():
        assert machine["cpu"]
        assert {"torch", "sparseinfer"} <= machine["versions"].keys()
    assert "EPYC" not in json.dumps({key: model[key] for key in ("kernels", "dense")})


class TestConvert:
    def test_decides_without_measuring(self) -> None:
        torch.manual_seed(0)
        dense = nn.Sequential(linear(512, 512, 0.95), linear(512, 512, 0.31))
        rows = explain(convert(dense, measure=False, tokens=(64,))).rows
        assert [row.source for row in rows] == ["predicted"] * 2
        assert all(math.isfinite(t) for row in rows for t in (*row.dense_us, *row.sparse_us))
        assert rows[0].decision == "sparse"

    def test_the_units_that_run(self) -> None:
        fast = convert(nn.Sequential(linear(512, 512, 0.95)), measure=False, tokens=(1, 64))
        (row,) = explain(fast).rows
        assert row.units == ("FMA",) * len(row.kernels)
        assert "FMA" in str(explain(fast))
        assert json.loads(explain(fast).to_json())["layers"][0]["units"] == list(row.units)
        # A model without a record says the same of what it finds.
        del fast._sparseinfer_report
        assert explain(fast).rows[0].units == row.units

    def test_dense_in_its_own_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def reason(private_bytes: int) -> str:
            monkeypatch.setattr(
                sys.modules["sparseinfer.convert.rows"], "private_bytes", lambda: private_bytes
            )
            fast = convert(nn.Sequential(linear(64, 64, 0.4)), measure=False, tokens=(1,))
            return explain(fast).rows[0].reason

        assert reason(1 << 14).endswith("; its 16 KiB fit in L2 (16 KiB)")
        assert reason((1 << 14) - 1024).startswith("dense is faster: ")
        assert "fit in" not in reason((1 << 14) - 1024)


def test_units_of_storages() -> None:
    for row in ops.kernels():
        assert row.unit in ops.UNITS
        assert row.unit == ("dot" if row.storage == "bf16" and row.native else "fma") or row.unit not in (
            "dot",
            "fma",
        )
