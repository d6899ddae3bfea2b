"""Writes sparseinfer/convert/candidates/cost_model.json: run it on a quiet machine, it takes some minutes.

    python bench/fit_cost_model.py [ISA ...]

For every candidate, token count and sparsity: nanoseconds per thousand multiply-adds of the dense layer, the
geometric mean over the shapes, on one thread, of the time beyond that of a call.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from sparseinfer import ops
from sparseinfer._machine import describe_machine
from sparseinfer._timing import geometric_mean
from sparseinfer.bench.problem import random_layer
from sparseinfer.convert.candidates import cost_model
from sparseinfer.convert.candidates.cost_model import CALL_US
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.convert.timing.timer import time_candidates

SHAPES = ((2048, 1024),)
TOKENS = (1, 4, 16, 64, 256)
SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Of the model, of the sparse weights, and what the kernels round x to.
DTYPES = (
    (F32, F32, F32),
    (F32, BF16, F32),
    (F32, BF16, BF16),
    (F32, F16, F32),
    (BF16, BF16, BF16),
    (F16, F16, F16),
)
OUT = Path(cost_model.__file__).with_name("cost_model.json")


def fit() -> dict[str, dict[str, list[list[float]]]]:
    """kind -> name -> [tokens][sparsities]."""
    costs: dict[str, dict[str, dict[tuple[int, float], list[float]]]] = defaultdict(lambda: defaultdict(dict))
    cells = list(itertools.product(DTYPES, SPARSITIES, TOKENS, SHAPES))
    for (dtype, weights_dtype, x_dtype), sparsity, tokens, (n, k) in track(
        cells, "timing", console=Console(stderr=True)
    ):
        weight, bias = random_layer(n, k, sparsity)
        dense = Weights(weight.to(dtype), bias.to(dtype))
        candidates = LinearCandidates(dense, Weights(weight.to(weights_dtype), dense.bias), x_dtype)
        layouts = ops.all_layouts("cpu", weights_dtype, x_dtype)
        for name, us in time_candidates(candidates, layouts, tokens).us.items():
            cost = max(us - CALL_US, 0.05 * us) * 1e6 / (n * k * tokens)
            costs[candidates.kind][name].setdefault((tokens, sparsity), []).append(cost)
    return {
        kind: {
            name: [[float(f"{geometric_mean(cell[m, s]):.4g}") for s in SPARSITIES] for m in TOKENS]
            for name, cell in by_name.items()
        }
        for kind, by_name in costs.items()
    }


def main() -> None:
    if os.environ.get("SPARSEINFER_FIT"):
        json.dump(fit(), sys.stdout)
        return
    torch.set_num_threads(1)
    levels = sys.argv[1:] or [ops.active_isa()]
    tables = {}
    for isa in levels:
        environment = {**os.environ, "SPARSEINFER_ISA": isa, "SPARSEINFER_FIT": "1", "OMP_NUM_THREADS": "1"}
        run = subprocess.run([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, check=True)
        tables[isa] = json.loads(run.stdout)
    model = {
        "machine": describe_machine(", ".join(levels)),
        "unit": "nanoseconds per 1000 multiply-adds of the dense layer, one thread, warm weights",
        "tokens": TOKENS,
        "sparsities": SPARSITIES,
        "isa": tables,
    }
    OUT.write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
