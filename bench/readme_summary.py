"""The summary of the steps of `bench/readme.py`: tables as Markdown, and charts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from sparseinfer._rates import rates
from sparseinfer._tables import as_markdown
from sparseinfer.bench import layer, plot, plot_models, totals, whole_model


def write_summary(folder: Path, steps: Iterable[str], families: Sequence[str]) -> None:
    """README.md and charts of the steps whose results are in the folder."""
    documents = {
        name: _read(folder / f"{name}.json") for name in steps if (folder / f"{name}.json").is_file()
    }
    if not documents:
        return
    machine = next(iter(documents.values()))["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    title = f"{machine['cpu']}, {machine['isa']}"
    layers = [
        layer.Measurement(**dict(zip(document["columns"], row, strict=True)))
        for document in documents.values()
        for row in document.get("rows", [])
        if "columns" in document
    ]
    models = [
        whole_model.Measurement(**row)
        for document in documents.values()
        if "columns" not in document
        for row in document["rows"]
    ]
    tables: list[Table] = list(totals.total_tables(layers, families))
    if models:
        tables += filter(None, [whole_model.table(models), whole_model.peer_table(models)])
    threads = " and ".join(str(count) for count in sorted({one.threads for one in (*layers, *models)}))
    text = [f"# {title}\n", f"`make bench`, {threads} thread(s), {versions}.\n", *map(as_markdown, tables)]
    if layers:
        known = rates(machine["isa"])
        plot.plot(layers, folder / "speedup.svg", title=title, rates=known)
        plot.roofline(layers, folder / "roofline.svg", known, title=title)
        text += ["![speed-up over sparsity](speedup.svg)", "![roofline](roofline.svg)"]
    for name in ("bert-base", "resnet-50"):
        if one := next((one for one in models if (one.model, one.dtype) == (name, "f32")), None):
            plot_models.plot_layers(one, folder / f"layers_{name}.svg")
            text.append(f"![layers of {name}](layers_{name}.svg)")
    if minilm := [one for one in models if one.model == "minilm"]:
        plot_models.plot_quality(minilm, folder / "quality.svg", title=title)
        text.append("![quality against latency](quality.svg)")
    (folder / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
