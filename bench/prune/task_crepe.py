"""Raw pitch accuracy of CREPE (tiny) on synthesised tones: its convolutions and its classifier are pruned."""

from __future__ import annotations

import math
from typing import Any

import torch
from task import Task
from torch import Tensor

from sparseinfer.bench.models import crepe

RATE, FRAME = 16_000, 1024
CALIBRATION, TEST = 128, 1024
# Bin i of the 360 stands for 20·i + OFFSET cents above 10 Hz.
BINS, CENTS_PER_BIN, OFFSET = 360, 20, 1997.3794084376191


def task() -> Task:
    frames, pitches = tones(TEST, seed=1000)
    return Task(
        model=crepe("tiny"),
        calibration=lambda seed: list(tones(CALIBRATION, seed)[0].split(16)),
        measure=lambda model: pitch_accuracy(model, frames, pitches),
        metric="raw pitch accuracy: share of frames within 50 cents",
        calibration_text=f"{CALIBRATION} tones, drawn by the seed",
        test_text=f"{TEST} other tones",
    )


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames [count, 1024] and their pitch in cents above 10 Hz [count].

    Pitches are even in cents from 60 to 1,000 Hz. Each tone has ten harmonics that fall off at random, below
    half the rate, and white noise 10 to 40 dB below it; frames have mean 0 and deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    cents = uniform(_cents(60), _cents(1000), 1)
    harmonics = torch.arange(1, 11)
    frequencies = 10 * 2 ** (cents / 1200) * harmonics
    sizes = uniform(0.3, 1, 10) * harmonics ** -uniform(0.3, 2, 1) * (frequencies < RATE / 2)
    phases = uniform(0, 2 * math.pi, 10)
    seconds = torch.arange(FRAME, dtype=torch.float64) / RATE
    waves = sizes[..., None] * torch.sin(2 * math.pi * frequencies[..., None] * seconds + phases[..., None])
    tone = waves.sum(1)
    noise = torch.randn(count, FRAME, generator=generator, dtype=torch.float64)
    tone += noise * tone.std(1, keepdim=True) * 10 ** (-uniform(10, 40, 1) / 20)
    frames = (tone - tone.mean(1, keepdim=True)) / tone.std(1, keepdim=True)
    return frames.float(), cents[:, 0]


@torch.no_grad()
def pitch_accuracy(model: Any, frames: Tensor, cents: Tensor) -> float:
    """Share of frames whose pitch, the mean of the nine bins around the peak weighted by them, is near."""
    salience = torch.cat([model(part) for part in frames.split(64)]).double()
    bins = torch.arange(BINS)
    near = (bins - salience.argmax(1, keepdim=True)).abs() <= 4
    weights = salience * near
    pitches = (weights * (CENTS_PER_BIN * bins + OFFSET)).sum(1) / weights.sum(1)
    return float(((pitches - cents).abs() < 50).double().mean())


def _cents(hertz: float) -> float:
    return 1200 * math.log2(hertz / 10)
