"""Where the time of a converted model goes: seconds of each operator, beside the dense model's.

    python bench/profile_model.py FILE --model bert-base --dtype int8 --sparsity 0.8 --batch 1 8

`ms` is a run without the profiler; `operators` are each one's share of it, by torch's profiler, whose own
cost is spread alike. What lies between operators (Python, allocation) is in them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sparseinfer import Magnitude, convert, explain, prune_
from sparseinfer._machine import describe_machine
from sparseinfer._timing import num_threads
from sparseinfer.bench.models import MODELS
from sparseinfer.bench.turns import time_models
from sparseinfer.bench.whole_model import DTYPES
from sparseinfer.ops import active_isa

RUNS, LEAST = 5, 0.005


def operators(run: Callable[[], object], ms: float) -> dict[str, float]:
    """Milliseconds of each operator in a run of `ms`, those of a share of at least LEAST."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(RUNS):
            run()
    us = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    whole = sum(us.values())
    largest = sorted(us, key=lambda name: -us[name])
    return {name: round(ms * us[name] / whole, 3) for name in largest if us[name] >= LEAST * whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", choices=MODELS, default="bert-base")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["f32", "int8"])
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    spec, rows = MODELS[options.model], []
    with num_threads(options.threads), torch.inference_mode():
        dense = spec.build()
        prune_(dense, Magnitude(options.sparsity), ignore=spec.ignore, keep_masks=False, progress=False)
        for batch in options.batch:
            inputs = spec.inputs(batch)
            models: dict[str, nn.Module] = {"dense f32": dense}
            for dtype in options.dtype:
                models[dtype] = convert(dense, example_inputs=spec.example(inputs), **DTYPES[dtype])
            times = time_models(models, spec.run, inputs, budget_s=3.0)
            for name, model in models.items():
                ms = times[name].min_us / 1e3
                found = operators(partial(spec.run, model, inputs), ms)
                dtypes = sorted({row.dtype for row in explain(model).rows if row.decision == "sparse"})
                rows.append({"model": options.model, "batch": batch, "which": name, "ms": round(ms, 3)})
                rows[-1] |= {"sparse in": dtypes, "operators": found}
                Console().print(rows[-1])
    about = {"sparsity": options.sparsity, "threads": options.threads}
    content = {"machine": describe_machine(active_isa()), **about, "rows": rows}
    options.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
