"""What pruning costs a real model, method by method, written as JSON.

    python bench/prune/quality.py smollm2 crepe --json bench/results

Every method reads the same statistics, of the calibration data that a seed draws. Seconds are of the whole
pass: calibration, if the method needs any, and pruning.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import task_crepe
import task_smollm2
import torch
from rich.console import Console
from task import Task

from sparseinfer._machine import describe_machine
from sparseinfer.bench.report import write_json
from sparseinfer.prune import Method, Reconstruct, Wanda, calibrate, prune_, registry

TASKS: Mapping[str, Callable[[], Task]] = {"smollm2": task_smollm2.task, "crepe": task_crepe.task}
# All that the command line offers, but those that need a loss: the calibrations have none.
METHODS: Mapping[str, Callable[[float], Method]] = {
    name: method for name, method in registry.methods().items() if "gradients" not in method.needs
} | {"wanda + reconstruct": lambda sparsity: Reconstruct(Wanda(sparsity))}


@dataclass(frozen=True)
class Result:
    """One pruned model.

    quality  the task's metric
    seconds  of calibration, if the method needs any, and pruning, on this machine; 0 for the dense model
    """

    method: str
    sparsity: float
    seed: int
    quality: float
    mean_error: float
    seconds: float


def results(task: Task, sparsities: Sequence[float], seeds: Sequence[int]) -> Iterator[Result]:
    dense = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    yield Result("dense", 0.0, 0, task.measure(task.model), 0.0, 0.0)
    for seed in seeds:
        batches = task.calibration(seed)
        start = time.perf_counter()
        stats = calibrate(task.model, batches, ignore=task.ignore)
        calibration_s = time.perf_counter() - start
        for sparsity in sparsities:
            for name, make in METHODS.items():
                method = make(sparsity)
                start = time.perf_counter()
                report = prune_(task.model, method, stats=stats, ignore=task.ignore, keep_masks=False)
                seconds = time.perf_counter() - start + (calibration_s if method.needs else 0.0)
                quality = task.measure(task.model)
                yield Result(name, sparsity, seed, quality, report.mean_error, seconds)
                task.model.load_state_dict(dense)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="+", choices=list(TASKS))
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="a folder for prune_<task>.json")
    options = parser.parse_args()
    console = Console(stderr=True)
    for name in options.task:
        task = TASKS[name]()
        done: list[Result] = []
        for result in results(task, options.sparsity, options.seed):
            done.append(result)
            console.print(result)
            if options.json:
                write(options.json / f"prune_{name}.json", task, done)


def write(path: Path, task: Task, done: Sequence[Result]) -> None:
    document = {
        "machine": describe_machine("torch"),
        "threads": torch.get_num_threads(),
        "metric": task.metric,
        "calibration": task.calibration_text,
        "test": task.test_text,
        "rows": [asdict(result) for result in done],
    }
    write_json(path, document)


if __name__ == "__main__":
    main()
