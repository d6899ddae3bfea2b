"""The matrices of models, what they gain together, bounds, charts and tables of them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.table import Table
from torch import nn

from sparseinfer._rates import Rates
from sparseinfer._tables import as_markdown
from sparseinfer.bench import bound, layer, plot, plot_models, report, totals, whole_model
from sparseinfer.bench.families import FAMILIES, named
from sparseinfer.bench.settings import Settings
from sparseinfer.cli import main

# 10 GHz of multiply-adds, dots twice as fast; 100 GB/s from caches, 10 from memory.
RATES = Rates(3.0, {"fma": 10.0, "dot": 20.0}, ((1 << 10, 100.0), (1 << 20, 100.0), (1 << 30, 10.0)), 1 << 20)


def matrices(model: nn.Module, name: str = "") -> Counter[tuple[int, int]]:
    """n and k of every Linear and convolution below `name`, as its weight says."""
    part = model.get_submodule(name)
    kinds = (nn.Linear, nn.Conv2d)
    return Counter(
        (m.weight.shape[0], math.prod(m.weight.shape[1:])) for m in part.modules() if isinstance(m, kinds)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_the_matrices_of_the_models(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        if family == "bert":
            found = matrices(transformers.BertModel(transformers.BertConfig()), "encoder")
        elif family == "vit":
            found = matrices(transformers.ViTModel(transformers.ViTConfig()))
            # The patches' projection is no layer of the encoder; q, k and v are three matrices here.
            found -= Counter({(768, 768): 1 + 1 + 3 * 12})
            found += Counter({(2304, 768): 12})
        elif family == "resnet":
            found = matrices(transformers.ResNetModel(transformers.ResNetConfig()), "encoder")
        else:
            sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
            found = matrices(transformers.LlamaModel(transformers.LlamaConfig(**sizes)))
    assert found == Counter(FAMILIES[family])


def test_families_by_name() -> None:
    assert list(named(("llama", "bert"))) == ["bert", "llama"]
    assert named(("all",)) == FAMILIES
    with pytest.raises(ValueError, match="layers: expected some of bert, vit, resnet, llama, all, got 'gpt'"):
        named(("gpt",))
    settings = Settings(layers=("bert", "vit"))
    assert settings.sizes == ((768, 768), (3072, 768), (768, 3072), (2304, 768))
    assert Settings(shapes=((8, 4),)).sizes == ((8, 4),)
    with pytest.raises(ValueError, match="layers: expected"):
        Settings(layers=("gpt",))


def row(name: str, kind: str, us: float, **changes: object) -> layer.Measurement:
    where = {"n": 8, "k": 4, "dtype": "f32", "threads": 1, "weights": "warm", "tokens": 1, "sparsity": 0.5}
    return layer.Measurement(
        **{**where, **changes}, name=name, kind=kind, layout="", nbytes=64, us=us, median_us=us, samples=7,
        gflops=4.0, eff_gflops=8.0, gbps=2.0, x_dense=10.0 / us,
    )  # fmt: skip


def test_totals_count_each_matrix_as_often_as_it_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {(8, 4): 3, (4, 8): 1}
    monkeypatch.setitem(FAMILIES, "bert", counts)  # type: ignore[index]
    rows = []
    for (n, k), dense, ours, other in (((8, 4), 10, 5, 20), ((4, 8), 100, 10, 50)):
        rows += [
            row("F.linear", "dense", 2 * dense, n=n, k=k),
            row("prepacked", "dense", dense, n=n, k=k),
            row("slow", "sparse", 2 * ours, n=n, k=k),
            row("fast", "sparse", ours, n=n, k=k),
            row("engine", "other", other, n=n, k=k),
        ]
    rows.append(row("once", "other", 1.0))  # not of all shapes
    (total,) = totals.totals(rows, ["bert"])
    assert total.dense_us == 3 * 10 + 100
    assert total.us == {"sparseinfer": 3 * 5 + 10, "engine": 3 * 20 + 50}
    assert total.speed_up("sparseinfer") == 130 / 25
    assert totals.totals(rows[:5], ["bert"]) == []  # a shape is missing
    (table,) = totals.total_tables(rows, ["bert"])
    assert "| 1 | sparseinfer | 5.20 |" in as_markdown(table)
    (others,) = report.peer_tables(rows)
    assert "| 1 | engine | 0.32 |" in as_markdown(others)  # the geometric mean of 0.5 and 0.2


def test_bounds() -> None:
    cell = layer.Cell(1000, 1000, "f32", 1, "warm", 64, 0.5)
    assert bound.bound_us(cell, RATES) == pytest.approx(64 * 500_000 / 10 / 1e3)
    assert bound.bound_us(replace(cell, threads=2), RATES) == pytest.approx(64 * 500_000 / 20 / 1e3)
    assert bound.bound_us(replace(cell, dtype="bf16"), RATES) == pytest.approx(64 * 500_000 / 20 / 1e3)
    # One token of cold weights: 4 bytes for each of them, a bit for each place, at the rate of memory.
    nbytes = 4 * 500_000 + 1_000_000 / 8 + 4 * 2000
    cold = replace(cell, tokens=1, weights="cold")
    assert bound.bound_us(cold, RATES) == pytest.approx(nbytes / 10 / 1e3)
    # Nothing measures the units that multiply integers here: only reading is bounded.
    integers = replace(cell, dtype="i8", tokens=1)
    assert bound.peak("i8", 1, RATES) == math.inf
    nbytes = 500_000 + 1_000_000 / 8 + 4 * 2000
    assert bound.bound_us(integers, RATES) == pytest.approx(nbytes / 100 / 1e3)
    vnni = replace(RATES, units={"fma": 10.0, "vnni": 40.0})
    assert bound.peak("i8", 2, vnni) == 80.0
    # Nothing is zero, or almost all: no bits are needed to say where.
    dense = replace(cold, sparsity=0.0)
    assert bound.bound_us(dense, RATES) == pytest.approx((4_000_000 + 8000) / 10 / 1e3)


def test_no_kernel_here_beats_the_bound() -> None:
    """What is measured is slower, by whatever the clock and others on this machine do to it."""
    from sparseinfer._rates import rates
    from sparseinfer.ops import active_isa

    settings = Settings(shapes=((512, 512),), sparsities=(0.8,), tokens=(64,), budget_s=0.02, peers=())
    best = min(one.us for one in layer.run(settings) if one.kind == "sparse")
    (cell,) = [layer.Cell(512, 512, "f32", 1, "warm", 64, 0.8)]
    assert bound.bound_us(cell, rates(active_isa())) < 2 * best


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_charts_are_drawn(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        row(name, kind, us / (1 if kind == "dense" else 1 / (1 - s)), sparsity=s, tokens=m)
        for s in (0.5, 0.9)
        for m in (1, 16)
        for name, kind, us in (("F.linear", "dense", 10.0), ("fast", "sparse", 10.0))
    ]
    layers = [("a.0", "sparse", 4.0, 1.0), ("a.1", "sparse", 4.0, 2.0), ("b", "dense", 3.0, 3.0)]
    one = whole_model.Measurement(
        "net", 1, 0.5, "f32", 1, "default", 10.0, 5.0, 10.0, 5.0, 2.0, 0.0, 100, 50, 3, 2, per_layer=layers
    )
    plot.plot(rows, tmp_path / f"speedup.{suffix}", rates=RATES)
    plot.roofline(rows, tmp_path / f"roofline.{suffix}", RATES)
    plot_models.plot_layers(one, tmp_path / f"layers.{suffix}")
    plot_models.plot_quality(
        [one, replace(one, sparsity=0.9, similarity=0.5)], tmp_path / f"quality.{suffix}"
    )
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert "bound, m = 16" in _text(tmp_path / "speedup.svg")  # as a comment beside its outlines


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_markdown_of_a_table() -> None:
    table = Table(title="t")
    table.add_column("a|b")
    table.add_column("n", justify="right")
    table.add_row("x|y", "1")
    assert as_markdown(table) == "**t**\n\n| a&#124;b | n |\n| --- | ---: |\n| x&#124;y | 1 |\n"


def test_bench_writes_markdown_and_all_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(FAMILIES, "bert", {(32, 16): 2})  # type: ignore[index]
    command = ["bench", "--layers", "bert", "--tokens", "2", "--sparsity", "0.5", "0.9", "--budget", "0.001"]
    text = tmp_path / "out.md"
    assert (
        main([*command, "--quiet", "--peers", "scipy", "--plot", str(tmp_path), "--markdown", str(text)]) == 0
    )
    assert {path.name for path in tmp_path.iterdir()} == {"out.md", "speedup.svg", "roofline.svg"}
    for title in ("x dense (least), f32", "other libraries, x dense", "all matrices of bert, x dense"):
        assert title in _text(text)
    assert "torch csr" not in _text(text)
