"""The table and the charts of the README for this machine, in less than ten minutes on two cores.

    python bench/readme.py [--kind zen5] [STEP ...]      all steps, or those named; then the summary of all

Each step is one call of `sparseinfer bench` and writes bench/results/KIND/STEP.json; the summary
is README.md and charts beside them. KIND is made from the CPU's name unless it is given. Other engines take
part where they are installed, here or by `make bench-peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from sparseinfer._machine import cpu_model
from sparseinfer._rates import rates
from sparseinfer._tables import as_markdown
from sparseinfer.bench import layer, plot, plot_models, totals, whole_model
from sparseinfer.bench.peers.process import interpreter
from sparseinfer.bench.peers.worker import ENGINES
from sparseinfer.cli import main as command

RESULTS = Path(__file__).parent / "results"
THREADS = str(min(2, os.cpu_count() or 1))
FAMILIES = ("bert", "vit", "llama")
LAYERS = ("--tokens", "1", "16", "128", "--sparsity", "0.5", "0.8", "0.9", "--budget", "0.25", "--quiet")
MODELS = ("--sparsity", "0.8", "0.9", "--dtype", "f32", "bf16", "--budget", "2")
STEPS: dict[str, tuple[str, ...]] = {
    **{f"layers_{name}": ("--layers", name, *LAYERS) for name in FAMILIES},
    "bert-base": ("--model", "bert-base", *MODELS),
    "resnet-50": ("--model", "resnet-50", "--sparsity", "0.8", "0.9", "--budget", "2"),
    "minilm": ("--model", "minilm", "--sparsity", "0", "0.5", "0.7", "0.8", "0.9", "--budget", "1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument(
        "--kind", default=_slug(cpu_model()), help="name of the folder (default: %(default)s)"
    )
    options = parser.parse_args()
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"steps: expected some of {', '.join(STEPS)}, got {', '.join(sorted(unknown))}")
    folder = RESULTS / options.kind
    folder.mkdir(exist_ok=True)
    start = time.perf_counter()
    for name in options.steps or STEPS:
        fixed = (
            "--threads",
            THREADS,
            "--peers",
            ",".join(_peers(name)),
            "--json",
            str(folder / f"{name}.json"),
        )
        if status := command(["bench", *STEPS[name], *fixed]):
            sys.exit(status)
    seconds = time.perf_counter() - start
    _summary(folder)
    sys.stdout.write(f"{folder}: {seconds:.0f} s\n")


def _peers(step: str) -> Iterator[str]:
    yield "torch"
    if step.startswith("layers"):
        yield "torch-csr"
    for engine in ENGINES:
        try:
            interpreter(engine)
        except ValueError:
            continue
        yield engine


def _slug(cpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", cpu.lower()).strip("_")


def _summary(folder: Path) -> None:
    """README.md and the charts of what there is."""
    documents = {
        name: _read(folder / f"{name}.json") for name in STEPS if (folder / f"{name}.json").is_file()
    }
    if not documents:
        return
    machine = next(iter(documents.values()))["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    title = f"{machine['cpu']}, {machine['isa']}, {THREADS} threads"
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
    tables: list[Table] = list(totals.total_tables(layers, FAMILIES))
    if models:
        tables += filter(None, [whole_model.table(models), whole_model.peer_table(models)])
    text = [f"# {title}\n", f"`make bench`, {versions}.\n", *map(as_markdown, tables)]
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


def _read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
