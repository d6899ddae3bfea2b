"""Times every way to compute a layer, for bench/fit_cost_model.py: run it on a quiet machine.

    python bench/time_candidates.py FILE --shape 2048x1024 --dtype f32 bf16 --tokens 1 16 --sparsity 0.5 0.9

Adds to FILE, which also says how fast the machine is. SPARSEINFER_ISA chooses the level.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from sparseinfer import ops
from sparseinfer._arguments import size
from sparseinfer._machine import describe_machine
from sparseinfer._rates import rates
from sparseinfer._timing import Call, interleave
from sparseinfer.bench.problem import random_layer
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.convert.survey.weights import Weights

F32, BF16, F16, I8, U8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8
# Of the model, of the sparse weights, and what the kernels round x to.
DTYPES = {
    "f32": (F32, F32, F32),
    "bf16": (BF16, BF16, BF16),
    "f16": (F16, F16, F16),
    "bf16w": (F32, BF16, F32),
    "f16w": (F32, F16, F32),
    "bf16x": (F32, BF16, BF16),
    "i8": (F32, I8, U8),
    "wi8": (F32, I8, F32),
}
TOKENS = (1, 4, 16, 64, 128)
SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
# Of one candidate; the slowest get three calls. Chosen, not measured: a whole run takes some minutes.
SECONDS, LEAST_ROUNDS = 0.02, 3


def cell(
    name: str, n: int, k: int, sparsity: float, tokens: list[int], block: tuple[int, int] | None
) -> list[dict[str, object]]:
    """One row for each number of tokens: microseconds and bytes by candidate.

    Of zeros in blocks only the layouts for these: all others do the same with any zeros.
    """
    dtype, weights_dtype, x_dtype = DTYPES[name]
    weight, bias = random_layer(n, k, sparsity, block=block)
    dense = Weights(weight.to(dtype), bias.to(dtype))
    sparse = dense.rounded(weights_dtype)
    assert isinstance(sparse, Weights), sparse
    candidates = LinearCandidates(dense, sparse, x_dtype)
    layouts = ops.all_layouts("cpu", weights_dtype, x_dtype)
    if block is not None:
        blocked = dict.fromkeys(layout for m in tokens for layout in candidates.layouts(m))
        layouts = tuple(layout for layout in blocked if layout not in layouts)
    nbytes = dict.fromkeys(candidates.dense_names, dense.weight.nbytes)
    nbytes |= {str(layout): sum(packed.nbytes for packed in candidates.packed(layout)) for layout in layouts}
    rows: list[dict[str, object]] = []
    for m in tokens:
        calls: dict[str, list[Call]] = {way: [make()] for way, make in candidates.dense(m).items()}
        calls |= {str(layout): [candidates.sparse(layout, m)()] for layout in layouts}
        times = interleave(calls, budget_s=SECONDS * len(calls), min_rounds=LEAST_ROUNDS)
        us = {way: round(time.min_us, 2) for way, time in times.items()}
        # Those that plans would try; the others are only for the fit.
        tried = [str(layout) for layout in candidates.layouts(m) if layout in layouts]
        about = {"kind": candidates.kind, "dtype": name, "n": n, "k": k, "sparsity": sparsity, "tokens": m}
        about |= {"block": block} if block else {}
        kernels = {str(layout): (candidates.kernel(layout, m), layout.panel) for layout in layouts}
        rows.append({**about, "tried": tried, "us": us, "nbytes": nbytes, "kernels": kernels})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", type=size, nargs="+", default=[(512, 1024), (1024, 2048), (5120, 3072)])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--block", type=size, help="zeros in blocks, such as 16x1")
    parser.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    isa = ops.active_isa()
    content: dict[str, list[dict[str, object]]] = {"runs": []}
    if options.file.exists():
        content = json.loads(options.file.read_text(encoding="utf-8"))
    run = {
        "machine": describe_machine(isa),
        "isa": isa,
        "rates": asdict(rates(isa)),
        "dense_rates": asdict(rates(ops.isa_levels()[-1])),
        "rows": [],
    }
    content["runs"].append(run)
    combinations = list(itertools.product(options.dtype, options.shape, options.sparsity))
    with torch.inference_mode():
        for name, (n, k), sparsity in track(combinations, "timing", console=Console(stderr=True)):
            run["rows"] += cell(name, n, k, sparsity, options.tokens, options.block)
            options.file.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
