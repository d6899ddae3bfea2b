"""What the sweep knows of one architecture: a tiny model with random, pruned weights, and inputs for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SPARSITY = 0.8

# Every seventh layer keeps all of its weights and every third loses them at random, the others by magnitude.
UNPRUNED, RANDOM = 7, 3


@dataclass(frozen=True)
class Case:
    """A model and what it is run with.

    inputs      by name, "batch x length": keyword arguments
    examples    names of the inputs of batch 1, what `convert` is shown: the first, or the last
    generate    keyword arguments of `generate`, by name; empty where the model generates nothing
    positional  the inputs are given by position, in their order
    """

    model: nn.Module
    inputs: Mapping[str, Mapping[str, Any]]
    examples: tuple[str, ...]
    generate: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    positional: bool = False

    def example(self, name: str) -> Any:
        given = self.inputs[name]
        return tuple(given.values()) if self.positional else dict(given)


@torch.no_grad()
def randomise(model: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Weights that tell an error: no bias is 0, no statistic 0 or 1, no branch is scaled to nothing.

    As initialised, a model of transformers returns what its embeddings say, whatever its layers do. With the
    weights that are left after pruning, a layer of gain 1 keeps the size of its input.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(0.2 * normal(module.running_mean))
            module.running_var.copy_(0.75 + torch.rand(module.running_var.shape, generator=generator))
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            parameter.add_(0.1 * normal(parameter))
    for index, (name, weight) in enumerate(_weights(model)):
        fan_in = math.prod(weight.shape[1:]) or 1
        pruned = index % UNPRUNED != UNPRUNED - 1
        kept = 1 - SPARSITY if pruned else 1.0
        weight.copy_(normal(weight) * gain / math.sqrt(fan_in * kept))
        if pruned:
            noise = torch.rand(weight.shape, generator=generator)
            scores = noise if index % RANDOM == RANDOM - 1 else weight.abs()
            count = round(weight.numel() * SPARSITY)
            lowest = scores.flatten().argsort()[:count]
            weight.view(-1)[lowest] = 0
            if name.endswith(_DIRECTIONS):
                weight[:, 0] = normal(weight[:, 0])  # a row of zeros has none
            # Those with the largest magnitude are larger than all were: keep the size that was meant.
            left = weight.square().sum() / (gain**2 * weight.numel() / fan_in)
            weight.div_(left.sqrt().clamp(min=1e-3))


# Of a weight norm, new and old.
_DIRECTIONS, _SIZES = ("original1", "weight_v"), ("original0", "weight_g")


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and matrices of the layers that can be converted, and of their relatives, each once."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention, nn.RNNBase)
    seen = set()
    for module in model.modules():
        if not isinstance(module, kinds) and type(module).__name__ != "Conv1D":
            continue
        for name, parameter in module.named_parameters():
            if parameter.dim() < 2 or name.endswith(_SIZES) or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if parameter.is_contiguous() and parameter.is_floating_point():
                yield name, parameter.data


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in model.modules())
