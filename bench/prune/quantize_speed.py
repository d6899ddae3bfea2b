"""Seconds that rounding to int8 and packing take for 100 million weights, on one thread.

    python bench/prune/quantize_speed.py --json bench/results/quantize_speed_zen5.json

Weights are float32 with 80 % zeros, of layers of two shapes; the least time of some runs counts. quantize is
`quantize_` with `RoundToNearest`, pack what `convert` does with its result: find the integers, list those
that are not zero, and pack them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from sparseinfer import ops
from sparseinfer._int8 import integers_of
from sparseinfer._machine import describe_machine
from sparseinfer.bench.problem import random_layer
from sparseinfer.bench.report import write_json
from sparseinfer.formats import CSR
from sparseinfer.quantize import quantize_

# n, k, and how many layers: some 20 and 30 million weights.
SHAPES = ((3072, 768, 8), (4096, 4096, 2))
SPARSITY, RUNS = 0.8, 4
PACKINGS = ("rowgroup", "sell")


def layers(n: int, k: int, count: int) -> nn.ModuleList:
    made = nn.ModuleList(nn.Linear(k, n, bias=False) for _ in range(count))
    weight, _ = random_layer(n, k, SPARSITY)
    with torch.no_grad():
        for layer in made:
            layer.weight.copy_(weight)
    return made


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def pack(model: nn.ModuleList, packing: str) -> None:
    for layer in model:
        found = integers_of(layer)
        assert found is not None
        ops.pack(CSR.from_dense(*found), packing, storage="i8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for n, k, count in SHAPES:
        per_100_million = 1e8 / (n * k * count)
        models = [layers(n, k, count) for _ in range(RUNS)]
        row: dict[str, object] = {
            "shape": (n, k),
            "quantize_s": min(seconds(partial(quantize_, m)) for m in models) * per_100_million,
        }
        for packing in PACKINGS:
            least = min(seconds(partial(pack, models[0], packing)) for _ in range(RUNS))
            row[f"pack_{packing}_s"] = least * per_100_million
        rows.append(row)
        Console(stderr=True).print(row)
    if options.json:
        document = {"machine": describe_machine("torch"), "threads": 1, "sparsity": SPARSITY, "rows": rows}
        write_json(options.json, document)


if __name__ == "__main__":
    main()
