"""The page of a model says what was decided, whatever the names in it, and needs nothing but itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseinfer as si
from sparseinfer._machine import describe_machine
from sparseinfer.bench.compare import Comparison, Side
from sparseinfer.convert import LayerReport
from sparseinfer.hub import history
from sparseinfer.io.summary import summary_of
from sparseinfer.ops import active_isa
from sparseinfer.report import Content, Latency, Quality, figures, html, report

EVIL = "<script>alert(1)</script>&\"'"
VOID = {"meta", "rect", "br"}
CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """Fails where tags are not closed in order; keeps text, and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def row(layer: str = "a.0", decision: str = "sparse", **changes: object) -> LayerReport:
    fields = {
        "shape": (8, 4),
        "sparsity": 0.75,
        "reason": "2.0x dense",
        "kernels": ((4, "spmm_sell"), (None, "spmm_rowgroup")),
        "tokens": (1, 128),
        "dense_us": (20.0, 40.0),
        "sparse_us": (10.0, 10.0),
        "dense_nbytes": 128,
        "nbytes": 64,
    }
    return LayerReport(layer=layer, decision=decision, **{**fields, **changes})


def content(**changes: object) -> Content:
    compared = Comparison(Side(3.0, 4.0, 5.0, 10, 0), Side(1.0, 2.0, 3.0, 5, 0), 7, 2, 1e-6, 2e-6)
    fields = {
        "name": "model",
        "kind": "Net",
        "machine": describe_machine(active_isa()),
        "layers": (row(), row("a.1"), row("head", "dense", reason="too dense to win: sparsity 0.1")),
        "latencies": (Latency("128 tokens", compared),),
        "quality": Quality("perplexity", {"dense": 20.0, "pruned": 25.5}, low_is_good=True),
        "pruning": history.Pruning(
            {"method": "sparsegpt"}, (history.PrunedWeight("a.0", 0.75, 0.125),), {"embed": "an embedding"}
        ),
    }
    return Content(**{**fields, **changes})


def test_the_page_says_all_there_is() -> None:
    page = Page(html(content()))
    for part in ("2.00×", "4 ms → 2 ms", "sparsegpt", "25.5", "less is better", "0.125"):
        assert part in page.text
    for name in ("a.0", "a.1", "head", "a.*", "spmm_sell", "up to 4 tokens", "an embedding", "8 × 4"):
        assert name in page.text
    assert "a kernel that skips zeros runs, 4.0× as fast as the best dense product" in page.text
    assert "too dense to win: sparsity 0.1" in page.text
    assert page.fetched == []
    assert "http" not in html(content())


def test_nothing_in_a_model_reaches_the_page_unescaped() -> None:
    text = html(
        content(
            name=EVIL,
            kind=EVIL,
            layers=(row(EVIL, reason=EVIL), row(EVIL, "dense", reason=EVIL)),
            quality=Quality(EVIL, {EVIL: 1.0}),
            pruning=history.Pruning({EVIL: EVIL}, (history.PrunedWeight(EVIL, 0.5, 0.5),), {EVIL: EVIL}),
            latencies=(Latency(EVIL, content().latencies[0].compared),),
        )
    )
    assert "<script" not in text
    assert Page(text).text.count("<script>alert(1)</script>") >= 10


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": (), "latencies": (), "quality": None, "pruning": None},
        {"layers": (row("", "prepacked", sparsity=None, dense_us=(), sparse_us=(), shape=()),)},
        {"layers": (row(dense_us=(float("inf"),), sparse_us=(1.0,)),)},
        {"layers": tuple(row(str(i), kind) for i, kind in enumerate(figures.DECISIONS))},
        {"quality": Quality("accuracy", {})},
        {"converted_here": True},
    ],
    ids=["bare", "unknown", "infinite", "every decision", "no values", "converted here"],
)
def test_what_is_not_known_is_left_out(changes: dict[str, object]) -> None:
    text = Page(html(content(**changes))).text
    assert "None" not in text
    assert "inf " not in text
    assert "nan" not in text


def test_sums_and_groups_are_of_the_rows() -> None:
    rows = (
        row("x.0"),
        row("x.1", dense_us=(1.0, 20.0), sparse_us=(1.0, 5.0)),
        row("y", "dense", sparsity=0.0),
    )
    first, second = figures.groups_of(rows)
    assert (first.name, first.dense_us, first.us, first.speed_up) == ("x.*", 60.0, 15.0, 4.0)
    assert (second.us, second.speed_up) == (40.0, 1.0)  # what was chosen is dense
    (_, before, dense), (_, after, converted) = figures.time_parts(rows)
    assert (before, after) == ("100 µs", "55 µs")
    assert [part.kind for part in dense] == ["sparse", "dense"]
    assert sum(part.width for part in dense) == pytest.approx(1)
    assert sum(part.width for part in converted) == pytest.approx(0.55)
    assert figures.sparsity_of(content(layers=rows)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (23_400_000, "23.4 MB")]
)
def test_sizes(value: int, text: str) -> None:
    assert figures.size(value) == text


def test_report_of_models_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8)).eval()
    si.prune_(dense, si.Magnitude(0.9), keep_masks=False)
    x = torch.randn(3, 64)
    fast = si.convert(dense, example_inputs=(x,))
    path = report(
        fast, tmp_path / "r.html", dense=dense, inputs=(x,), quality={"a": 1.0, "b": 0.5}, budget_s=0.01
    )
    text = Page(path.read_text(encoding="utf-8")).text
    assert "Sequential" in text
    assert "the inputs given" in text
    assert "96 × 64" in text
    with pytest.raises(ValueError, match="dense: expected both"):
        report(fast, tmp_path / "other.html", inputs=(x,))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        report("model", tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_bytes_and_formats_are_those_of_the_files(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Linear(64, 96)).eval()
    si.prune_(dense, si.Magnitude(0.9), keep_masks=False)
    si.save(dense, tmp_path / "m.safetensors")
    summary = summary_of(tmp_path / "m.safetensors")
    made = content(layers=(), summary=summary)
    assert {name: count for name, count, _, _ in figures.formats_of(made)}["dense"] == 1
    assert [bar.text for bar in figures.byte_bars(made)] == [
        figures.size(summary.dense_nbytes),
        figures.size(summary.nbytes),
    ]
    assert figures.sparsity_of(made) == pytest.approx(0.9, abs=1e-3)


def test_pruning_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert history.read(tmp_path) is None
    one = history.Pruning(
        {"method": "wanda"},
        (history.PrunedWeight("a", 0.5, None),),
        {"b": "why"},
        "perplexity",
        {"dense": 3.0},
    )
    history.write(tmp_path, one)
    assert history.read(tmp_path) == one
    (tmp_path / "new").mkdir()
    history.carry(tmp_path, tmp_path / "new")
    assert history.read(tmp_path / "new") == one


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": [1]},
        {"layers": [{"name": "a", "sparsity": "x", "error": None}]},
        {"values": {"dense": None}},
        {"options": []},
        {"quality": None, "layers": None},
    ],
    ids=str,
)
def test_a_damaged_record_of_pruning_is_refused(damage: dict[str, object], tmp_path: Path) -> None:
    good = {"options": {}, "layers": [], "skipped": {}, "quality": "", "values": {}}
    (tmp_path / history.FILE).write_text(json.dumps({**good, **damage}))
    with pytest.raises(ValueError, match=r"pruning.json: expected a file of sparseinfer prune"):
        history.read(tmp_path)
    (tmp_path / history.FILE).write_text("{")
    with pytest.raises(ValueError, match=r"pruning.json: expected"):
        history.read(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path: Path) -> None:
    """On a phone 390 pixels wide, and on a desktop; every line open."""
    long = "model.layers.0.self_attention.attention_output_projection.linear"
    page = html(content(name=long, layers=(row(long, reason=f"one matrix with {long}"), row("b", "dense"))))
    page = page.replace('<details class="group">', '<details class="group" open>')
    frames = "".join(
        f'<iframe srcdoc="{_quoted(page)}" width="{width}" height="900"></iframe>' for width in (390, 1100)
    )
    script = """<script>addEventListener("load", () => {
        const widths = [...document.querySelectorAll("iframe")].map(
            frame => frame.contentDocument.documentElement.scrollWidth);
        document.title = "widths " + widths.join(" ");
    })</script>"""
    host = tmp_path / "host.html"
    host.write_text(f"<!doctype html><body>{frames}{script}", encoding="utf-8")
    flags = (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-sync",
        "dump-dom",
    )
    flags += ("disable-background-networking", "disable-component-update", "hide-scrollbars")
    command = [
        str(CHROMIUM),
        *(f"--{flag}" for flag in flags),
        f"--user-data-dir={tmp_path / 'profile'}",
        host.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>widths (\d+) (\d+)</title>", shown)
    assert found is not None
    assert int(found[1]) <= 390
    assert int(found[2]) <= 1100


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;")
