"""Models of layers that torch computes in one call, LSTM, GRU and attention: dense against converted.

    python bench/recurrent.py --json FILE [--model NAME ...] [--dtype f32 bf16] [--batch N ...]

Times are minima of runs in turns, over the same model left dense; `copy_ms` is that of a copy of it, which
shows what the place of weights in memory alone does. Nothing is rounded: "bf16" is a model in bfloat16. Rows
are added to those of the file.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from sparseinfer import Magnitude, convert, explain, prune_
from sparseinfer._cache_files import DIRECTORY
from sparseinfer._machine import describe_machine
from sparseinfer.bench.turns import time_models
from sparseinfer.ops import active_isa

STEPS, TAGS = 32, 17
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Tagger(nn.Module):
    """A layer over a sequence, and a Linear on each of its results."""

    def __init__(self, layer: nn.Module, features: int) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(features, TAGS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.layer(x)[0])
        return y


class Attending(nn.Module):
    """Self-attention, and a Linear on each of its results."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(features, heads, batch_first=True)
        self.out = nn.Linear(features, TAGS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.attention(x, x, x, need_weights=False)[0])
        return y


# Number of features, and the model.
MODELS: Mapping[str, tuple[int, Callable[[], nn.Module]]] = {
    "tagger": (
        256,
        lambda: Tagger(nn.LSTM(256, 256, num_layers=2, bidirectional=True, batch_first=True), 512),
    ),
    "lstm-512": (512, lambda: Tagger(nn.LSTM(512, 512, batch_first=True), 512)),
    "lstm-1024": (1024, lambda: Tagger(nn.LSTM(1024, 1024, batch_first=True), 1024)),
    "gru-512": (512, lambda: Tagger(nn.GRU(512, 512, batch_first=True), 512)),
    "mha-512": (512, lambda: Attending(512, 8)),
}


@torch.inference_mode()
def measured(name: str, dtype: str, batch: int, sparsity: float, budget_s: float) -> dict[str, Any]:
    torch.manual_seed(0)
    features, make = MODELS[name]
    dense = make().eval().to(DTYPES[dtype])
    if sparsity:
        prune_(dense, Magnitude(sparsity), ignore=["out"], keep_masks=False)
    x = torch.randn(batch, STEPS, features).to(DTYPES[dtype])
    fast = convert(copy.deepcopy(dense), example_inputs=x)
    models = {"dense": dense, "copy": copy.deepcopy(dense), "fast": fast}
    times = time_models(models, lambda model, x: model(x), x, budget_s=budget_s)
    error = (fast(x).double() - dense(x).double()).norm() / dense(x).double().norm()
    decisions = {row.layer: f"{row.decision}: {row.reason}" for row in explain(fast).rows}
    return {
        "model": name,
        "dtype": dtype,
        "batch": batch,
        "sparsity": sparsity,
        "dense_ms": times["dense"].min_us / 1e3,
        "copy_ms": times["copy"].min_us / 1e3,
        "ms": times["fast"].min_us / 1e3,
        "speed_up": times["dense"].min_us / times["fast"].min_us,
        "unchanged": all(decision.startswith("dense") for decision in decisions.values()),
        "difference": float(error),
        "decisions": decisions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.0, 0.9, 0.5, 0.95])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=0.3, help="seconds to time each pair of models for")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ("model", "dtype", "batch", "sparsity")
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    by_cell = {tuple(row[name] for name in names): row for row in rows}
    cells = product(options.sparsity, options.model, options.dtype, options.batch)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[DIRECTORY] = folder
        for sparsity, *about in cells:
            cell = (*about, sparsity)
            row = by_cell[cell] = measured(*cell, options.budget)
            shown = "unchanged" if row["unchanged"] else f"difference {row['difference']:.0e}"
            Console().print(*cell, f"{row['speed_up']:6.2f}", shown)
            content = {"machine": describe_machine(active_isa()), "threads": options.threads, "steps": STEPS}
            rows = list(by_cell.values())
            options.json.write_text(json.dumps({**content, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
