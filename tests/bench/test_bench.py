from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparseinfer import _machine as machine
from sparseinfer import _timing as timing
from sparseinfer import ops
from sparseinfer.bench import layer, plot, report
from sparseinfer.bench.candidate import Candidate
from sparseinfer.bench.problem import NumericsError, check, random_layer
from sparseinfer.bench.settings import Settings

TINY = Settings(shapes=((64, 48),), sparsities=(0.5, 0.9), tokens=(1, 17), budget_s=1e-3)


@pytest.fixture(scope="module")
def rows() -> list[layer.Measurement]:
    return layer.run(TINY)


def row(**changes: object) -> layer.Measurement:
    where = {"n": 8, "k": 4, "dtype": "f32", "threads": 1, "weights": "warm", "tokens": 1, "sparsity": 0.5}
    what = {"name": "spmm_csr", "kind": "sparse", "layout": "csr_f32", "nbytes": 64}
    base = layer.Measurement(
        **where, **what, us=10.0, median_us=11.0, samples=7, gflops=1.0, eff_gflops=2.0, gbps=3.0
    )
    return replace(base, x_dense=2.0, **changes) if "x_dense" not in changes else replace(base, **changes)


@pytest.mark.parametrize("block", [None, (4, 8)])
def test_random_layer_has_the_exact_number_of_zeros(block: tuple[int, int] | None) -> None:
    weight, bias = random_layer(16, 32, 0.8, block=block)
    r, c = block or (1, 1)
    units = 16 * 32 // (r * c)
    assert int((weight != 0).sum()) == (units - round(0.8 * units)) * r * c
    assert bias.shape == (16,)
    assert torch.equal(weight, random_layer(16, 32, 0.8, block=block)[0])


def test_cells_hold_every_kernel_of_the_active_level_and_the_dense_ones(
    rows: list[layer.Measurement],
) -> None:
    for sparsity in TINY.sparsities:
        for tokens in TINY.tokens:
            cell = [r for r in rows if (r.sparsity, r.tokens) == (sparsity, tokens)]
            sparse = [r for r in cell if r.kind == "sparse"]
            kernels = {
                kernel.name
                for kernel in ops.kernels_at(ops.active_isa())
                if (kernel.storage, kernel.format) == ("f32", "csr") and not 0 < kernel.max_tokens < tokens
            }
            assert {r.name.split(" ")[0] for r in sparse} == kernels
            zeros = round(sparsity * 64 * 48) / (64 * 48)
            offered = ops.candidate_layouts("cpu", torch.float32, torch.float32, tokens, zeros)
            assert {r.layout for r in sparse if r.planned} == {str(layout) for layout in offered}
            dense = [r.us for r in cell if r.kind == "dense"]
            assert dense
            for r in cell:
                assert r.x_dense == pytest.approx(min(dense) / r.us)
                assert r.eff_gflops == pytest.approx(2e-3 * r.tokens * r.n * r.k / r.us)
                assert 0 < r.us <= r.median_us
                if r.kind == "sparse" or "csr" in r.name:
                    assert r.gflops == pytest.approx(r.eff_gflops * (1 - sparsity), rel=0.01)


def test_every_dtype_stands_beside_dense_float32_and_bfloat16_and_other_csr() -> None:
    settings = replace(TINY, dtypes=("bf16", "f16"), tokens=(3,), sparsities=(0.5,), threads=(1, 2))
    found = layer.run(settings)
    assert {(r.dtype, r.threads) for r in found} == {("bf16", 1), ("bf16", 2), ("f16", 1), ("f16", 2)}
    names = {r.name for r in found if r.dtype == "bf16"}
    assert {"F.linear", "F.linear float32", "torch csr"} <= names
    assert {r.kind for r in found if r.name == "F.linear float32"} == {"other"}
    assert {r.name for r in found if r.dtype == "f16" and r.kind == "dense"} == {"F.linear"}


@pytest.mark.parametrize("isa", ops.isa_levels())
def test_blocks_add_the_bsr_kernels_of_every_level_asked_for(isa: str) -> None:
    settings = replace(
        TINY, block=(4, 4), isas=(isa,), dtypes=("f32", "bf16"), tokens=(3,), sparsities=(0.5,)
    )
    names = {(r.dtype, r.name) for r in layer.run(settings) if r.layout.startswith("bsr")}
    storages = [("f32", "f32"), ("bf16", "bf16"), ("bf16", "f32")]
    kernels = {kernel.storage: kernel.name for kernel in ops.kernels_at(isa) if kernel.packing == "bsr"}
    assert names == {(dtype, kernels[storage]) for dtype, storage in storages}


def test_cold_weights_are_copies_that_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: dict[str, int] = {}

    def record(calls: dict[str, list[timing.Call]], **_: object) -> dict[str, timing.Timing]:
        copies.update({name: len(found) for name, found in calls.items()})
        return dict.fromkeys(calls, timing.Timing(1.0, 1.0, 1))

    monkeypatch.setattr(layer, "last_level_cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(layer, "interleave", record)
    rows = layer.run(replace(TINY, shapes=((512, 256),), weights=("cold",)))
    for row in rows:
        assert copies[row.name] >= 2
        assert copies[row.name] * max(row.nbytes, 1 << 16) >= 2 << 20


@pytest.mark.parametrize("result", ["wrong", "nan", "shape"])
def test_a_wrong_result_is_refused(result: str) -> None:
    weight, bias = random_layer(8, 4, 0.5)
    x = torch.ones(3, 4)
    y = torch.nn.functional.linear(x, weight, bias)
    if result == "shape":
        y = y.t()
    else:
        y[1, 2] = math.nan if result == "nan" else y[1, 2] + 1e-5
    entry = Candidate("bad", "dense", "", torch.float32, 32, 128, lambda: lambda x: y)
    with pytest.raises(NumericsError, match="bad: expected"):
        check(entry, x, weight, bias)


@pytest.mark.parametrize(
    "changes",
    [
        {"shapes": ()},
        {"shapes": ((0, 4),)},
        {"sparsities": (1.0,)},
        {"sparsities": (math.nan,)},
        {"tokens": (0,)},
        {"threads": (0,)},
        {"dtypes": ("f64",)},
        {"dtypes": ()},
        {"weights": ("lukewarm",)},
        {"budget_s": math.inf},
        {"block": (3, 4)},
        {"block": (0, 4)},
        {"isas": ("mmx",)},
    ],
    ids=str,
)
def test_bad_settings_are_refused(changes: dict[str, object]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name}: expected .*, got"):
        replace(TINY, **changes)


def test_means_take_the_best_kernel_of_each_shape() -> None:
    rows = [
        row(x_dense=2.0, name="a"),
        row(x_dense=1.0, name="b"),
        row(x_dense=4.0, name="a", n=16),
        row(x_dense=8.0, name="b", n=16),
        row(x_dense=1.0, name="dense", kind="dense"),
    ]
    (mean,) = report.means(rows)
    assert mean.shapes == 2
    assert mean.x_dense == pytest.approx(4.0)
    assert mean.least == pytest.approx(2.0)
    assert mean.kernels == pytest.approx({"a": math.sqrt(8), "b": math.sqrt(8)})


def test_the_json_document_says_what_was_measured_and_where(rows: list[layer.Measurement]) -> None:
    document = report.to_json(machine.describe_machine(ops.active_isa()), TINY, rows)
    loaded = json.loads(json.dumps(document))
    assert loaded["machine"]["cpu"]
    assert loaded["machine"]["isa"] == ops.active_isa()
    assert {"python", "torch", "sparseinfer"} <= loaded["machine"]["versions"].keys()
    assert loaded["settings"]["threads"] == [1]
    read = [layer.Measurement(**dict(zip(loaded["columns"], entry, strict=True))) for entry in loaded["rows"]]
    assert [(r.name, r.tokens) for r in read] == [(r.name, r.tokens) for r in rows]
    assert [r.us for r in read] == pytest.approx([r.us for r in rows], rel=1e-3)
    assert len(loaded["geometric_mean"]) == 4


@pytest.mark.parametrize(
    ("speed_ups", "expected"), [((0.5, 2.0), 0.6), ((2.0, 3.0), None), ((0.5, 0.9), None), ((0.5, 1.0), 0.7)]
)
def test_break_even(speed_ups: tuple[float, float], expected: float | None) -> None:
    assert plot.break_even((0.5, 0.7), speed_ups) == (expected and pytest.approx(expected))


@pytest.mark.parametrize("dtypes", [("f32",), ("f32", "bf16", "f16")])
def test_plot_writes_a_picture(
    rows: list[layer.Measurement], dtypes: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    plot.plot([replace(row, dtype=dtype) for dtype in dtypes for row in rows], path, title="t")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_last_level_cache_is_a_sensible_size() -> None:
    assert 1 << 18 <= machine.last_level_cache_bytes() <= 1 << 32
