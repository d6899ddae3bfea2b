"""What int8 costs a pruned real model, method by method, written as JSON.

    python bench/prune/quality_int8.py crepe minilm smollm2 --json bench/results

Each model is pruned first, and calibrated again for the quantizers. Activations are rounded by plain torch
(`simulated`), so that no kernel is needed. `--pruned` keeps pruned models in a folder, and rows of methods
that are not run again stay in the JSON: a slow machine can take one method at a time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import task_crepe
import task_minilm
import task_smollm2
import torch
from rich.console import Console
from task import Task
from torch import nn

from sparseinfer._machine import describe_machine
from sparseinfer.bench.report import write_json
from sparseinfer.prune import ADMM, calibrate, finalize_, prune_
from sparseinfer.quantize import (
    GPTQ,
    Quantizer,
    RoundToNearest,
    SmoothQuant,
    StaticInputs,
    quantize_,
    simulated,
)

METHODS: Mapping[str, Quantizer] = {
    "nearest": RoundToNearest(),
    "nearest, clipped": RoundToNearest(clip="mse"),
    "gptq": GPTQ(),
    "gptq, ordered": GPTQ(act_order=True),
    "smoothquant": SmoothQuant(),
}
# What `simulated` is given; none for float activations.
ACTIVATIONS: Mapping[str, Mapping[str, bool] | None] = {
    "float": None,
    "u8": {},
    "s8": {"signed": True},
    "static u8": {"static": True},
}


@dataclass(frozen=True)
class Result:
    """One quantized model.

    quality    the task's metric
    made_zero  weights that rounding made zero
    error      mean over the layers, of their outputs; weights alone
    seconds    of rounding, without calibration, on this machine
    """

    method: str
    activations: str
    quality: float
    made_zero: int = 0
    error: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Study:
    """A task, how its model is pruned, and this in words."""

    task: Task
    prune: Callable[[Task], nn.Module]
    pruning: str


def studies(options: argparse.Namespace) -> Mapping[str, Callable[[], Study]]:
    steps, samples = options.steps, options.samples
    return {
        "crepe": lambda: Study(task_crepe.task(), by_admm(0.7), "ADMM, sparsity 0.7"),
        "minilm": lambda: Study(
            task_minilm.task(),
            lambda task: task_minilm.recovered(task.model, steps),
            f"ADMM, sparsity 0.8, trained for {steps} steps",
        ),
        "smollm2": lambda: Study(task_smollm2.task(samples), by_admm(0.5), "ADMM, sparsity 0.5"),
    }


def by_admm(sparsity: float) -> Callable[[Task], nn.Module]:
    def prune(task: Task) -> nn.Module:
        stats = calibrate(task.model, task.calibration(0), ignore=task.ignore)
        prune_(task.model, ADMM(sparsity), stats=stats, ignore=task.ignore)
        return task.model

    return prune


def pruned_model(study: Study, kept: Path | None) -> nn.Module:
    """From the file, if there is one."""
    if kept is not None and kept.exists():
        study.task.model.load_state_dict(torch.load(kept, weights_only=True))
        return study.task.model
    model = finalize_(study.prune(study.task))
    if kept is not None:
        torch.save(model.state_dict(), kept)
    return model


def results(study: Study, model: nn.Module, options: argparse.Namespace) -> Iterator[Result]:
    task = study.task
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if "none" in options.method:
        yield Result("none", "float", task.measure(model))
    chosen = [name for name in options.method if name in METHODS]
    if not chosen:
        return
    stats = calibrate(model, task.calibration(0), ranges=True, ignore=task.ignore)
    for name in chosen:
        start = time.perf_counter()
        try:
            report = quantize_(model, METHODS[name], stats=stats, inputs=StaticInputs(), ignore=task.ignore)
        except ValueError as error:  # no norm of this model can be folded
            Console(stderr=True).print(name, error)
            continue
        seconds = time.perf_counter() - start
        for activations in options.activations:
            how = ACTIVATIONS[activations]
            with nullcontext() if how is None else simulated(model, **how):
                quality = task.measure(model)
            yield Result(name, activations, quality, report.made_zero, report.mean_error or 0.0, seconds)
        # Other weights than the scales were made for are not quantized.
        model.load_state_dict(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="+", choices=["crepe", "minilm", "smollm2"])
    parser.add_argument("--method", nargs="+", choices=["none", *METHODS], default=["none", *METHODS])
    parser.add_argument("--activations", nargs="+", choices=list(ACTIVATIONS), default=list(ACTIVATIONS))
    parser.add_argument("--samples", type=int, default=task_smollm2.SAMPLES, help="sequences of smollm2")
    parser.add_argument("--steps", type=int, default=1200, help="of training, of minilm")
    parser.add_argument("--pruned", type=Path, help="a folder to keep pruned models in")
    parser.add_argument("--json", type=Path, help="a folder for quantize_<task>.json")
    options = parser.parse_args()
    for name in options.task:
        study = studies(options)[name]()
        model = pruned_model(study, options.pruned / f"{name}.pt" if options.pruned else None)
        for result in results(study, model, options):
            Console(stderr=True).print(result)
            if options.json:
                add(options.json / f"quantize_{name}.json", study, result)


def add(path: Path, study: Study, result: Result) -> None:
    """Writes the row in place of the one with its method and activations."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    new = asdict(result)
    rows = [row for row in rows if (row["method"], row["activations"]) != (result.method, result.activations)]
    document = {
        "machine": describe_machine("torch"),
        "threads": torch.get_num_threads(),
        "metric": study.task.metric,
        "pruning": study.pruning,
        "calibration": study.task.calibration_text,
        "test": study.task.test_text,
        "rows": sorted([*rows, new], key=_place),
    }
    write_json(path, document)


def _place(row: Mapping[str, object]) -> tuple[int, int]:
    methods: Sequence[str] = ["none", *METHODS]
    return methods.index(str(row["method"])), list(ACTIVATIONS).index(str(row["activations"]))


if __name__ == "__main__":
    main()
