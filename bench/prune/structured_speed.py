"""What structured pruning gains: half of BERT-base, a fifth of SmolLM2 beside zeros, latencies asked for.

    python bench/prune/structured_speed.py --json bench/results/structured_speed_zen5.json

Random weights, one sequence of 128 tokens or one image; models take turns.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from structured_quality import smollm2_ratio
from torch import nn

from sparseinfer import convert
from sparseinfer._machine import describe_machine
from sparseinfer._running import call
from sparseinfer._timing import interleave
from sparseinfer.bench.models import MODELS
from sparseinfer.bench.report import write_json
from sparseinfer.prune import Magnitude, prune_, prune_structured_

CASES = (
    "half float32",
    "half bfloat16",
    "latency bert-base",
    "latency resnet-50",
    "beside-zeros 0.5",
)
# Of the dense time.
TARGETS = (0.6,)


def milliseconds(models: dict[str, nn.Module], inputs: Any, budget_s: float = 4.0) -> dict[str, float]:
    calls = {name: [partial(call, model, inputs)] for name, model in models.items()}
    with torch.inference_mode():
        times = interleave(calls, budget_s=budget_s)
    return {name: time.min_us / 1000 for name, time in times.items()}


def bert() -> nn.Module:
    """Random weights that are drawn quickly: times do not depend on them, and units go at random."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(), add_pooling_layer=False)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for t in model.parameters():
            t.uniform_(-0.05, 0.05)
        model.embeddings.position_ids.copy_(torch.arange(512)[None])
        model.embeddings.token_type_ids.zero_()
    return model


def half(dtype: torch.dtype) -> dict[str, Any]:
    """BERT-base, 6 of 12 heads and 1536 of 3072 neurons of each layer."""
    dense, inputs = bert().to(dtype), MODELS["bert-base"].inputs(1)
    pruned = copy.deepcopy(dense)
    report = prune_structured_(pruned, inputs, "random", ratio=0.5)
    models = {"dense": dense, "pruned": pruned}
    # Without zeros: weights laid out once for oneDNN, where that is faster.
    models |= {f"{name}_converted": convert(model, example_inputs=inputs) for name, model in models.items()}
    times = milliseconds(models, inputs, 10.0)
    return {
        "model": "bert-base",
        "dtype": str(dtype).removeprefix("torch."),
        "flops": report.flops,
        **{f"{name}_ms": time for name, time in times.items()},
        "speedup": times["dense"] / times["pruned"],
        "converted_speedup": times["dense_converted"] / times["pruned_converted"],
    }


def beside_zeros(sparsity: float) -> list[dict[str, Any]]:
    """SmolLM2 with the units removed that `structured_quality.py` removes, beside zeros in its blocks."""
    spec = MODELS["smollm2"]
    dense = spec.build()
    ids = torch.randint(3, 1000, (1, 128), generator=torch.Generator().manual_seed(0))
    removed, zeros = copy.deepcopy(dense), copy.deepcopy(dense)
    prune_structured_(removed, (ids,), "random", ratio=smollm2_ratio(dense, (ids,), importance="random"))
    prune_(zeros, Magnitude(sparsity), ignore=spec.ignore, keep_masks=False)
    rows = []
    for tokens in (1, 128):
        inputs = (ids[:, :tokens],)
        models = {"dense": dense, "removed": removed}
        models["removed_converted"] = convert(removed, example_inputs=inputs, ignore=spec.ignore)
        models["zeros"] = convert(zeros, example_inputs=inputs, ignore=spec.ignore)
        times = milliseconds(models, inputs)
        rows.append(
            {
                "model": "smollm2",
                "tokens": tokens,
                "sparsity": sparsity,
                "dense_ms": times["dense"],
                **{f"{name}_speedup": times["dense"] / times[name] for name in list(models)[1:]},
            }
        )
    return rows


def latency(name: str) -> list[dict[str, Any]]:
    """What was asked for, predicted and measured, and both models once more in turns."""
    spec = MODELS[name]
    dense, inputs = (bert if name == "bert-base" else spec.build)(), spec.inputs(1)
    if name == "resnet-50":
        inputs = tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)
        dense = dense.to(memory_format=torch.channels_last)
    dense_ms = milliseconds({"dense": dense}, inputs, 3.0)["dense"]
    rows = []
    for part in TARGETS:
        pruned = copy.deepcopy(dense)
        report = prune_structured_(
            pruned, inputs, "random", latency=part * dense_ms, ignore=list(spec.ignore)
        )
        assert report.milliseconds is not None
        times = milliseconds({"dense": dense, "pruned": pruned}, inputs, 4.0)
        rows.append(
            {
                "model": name,
                "target_ms": part * dense_ms,
                "predicted_ms": report.milliseconds[0],
                "measured_ms": report.milliseconds[1],
                "afterwards_ms": times["pruned"],
                "dense_afterwards_ms": times["dense"],
                "flops": report.flops[1] / report.flops[0],
            }
        )
    return rows


RUNS: Mapping[str, Callable[[str], list[dict[str, Any]]]] = {
    "half": lambda dtype: [half(getattr(torch, dtype))],
    "latency": latency,
    "beside-zeros": lambda sparsity: beside_zeros(float(sparsity)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file; rows of cases that are not run stay in it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {}
    for case in options.case:
        kind, what = case.split()
        rows[case] = RUNS[kind](what)
        Console(stderr=True).print(case, rows[case])
        if options.json:
            done = json.loads(options.json.read_text())["cases"] if options.json.exists() else {}
            document = {"machine": describe_machine("torch"), "threads": options.threads}
            write_json(options.json, {**document, "cases": {**done, **rows}})


if __name__ == "__main__":
    main()
