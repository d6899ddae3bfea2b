"""What the pruning tests share: one layer of every kind, and inputs for it; every solver."""

from __future__ import annotations

from collections.abc import Callable

import torch
from generators import values
from torch import Tensor, nn

from sparseinfer.prune import registry
from sparseinfer.prune.solvers import Solver

Kind = tuple[Callable[[], nn.Module], tuple[int, ...]]

# Every solver that can be chosen by name.
SOLVERS = [method for method in registry.methods().values() if issubclass(method, Solver)]

# A layer, and the shape of an input.
KINDS: dict[str, Kind] = {
    "linear": (lambda: nn.Linear(8, 6), (3, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 6)),
    "conv2d-1x1": (lambda: nn.Conv2d(4, 6, 1, stride=2), (2, 4, 5, 6)),
    "conv2d-groups": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2, dilation=(1, 2)),
        (2, 4, 9, 8),
    ),
    "conv2d-depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=2, groups=4), (2, 4, 5, 6)),
    "conv2d-reflect": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (2, 4, 5, 6)),
    "conv2d-one": (lambda: nn.Conv2d(4, 6, 3, padding=(0, 1), padding_mode="replicate"), (4, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2), (2, 4, 11)),
    "conv1d-groups": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular", groups=2), (2, 4, 9)),
    "conv1d-one": (lambda: nn.Conv1d(4, 6, 5, padding="same"), (4, 9)),
}


def layer_of_kind(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A seeded layer and an input of its dtype."""
    make, shape = KINDS[kind]
    layer = make().to(dtype)
    layer.weight.data.copy_(values(*layer.weight.shape, dtype=dtype))
    return layer, values(*shape, seed=1, dtype=dtype)


def transposed(n: int, k: int, seed: int = 0) -> nn.Module:
    """transformers' Conv1D."""
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(n, k)
    layer.weight.data.copy_(values(k, n, seed=seed))
    return layer


def linear(
    n: int, k: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, weight: Tensor | None = None
) -> nn.Linear:
    """With this weight, whatever its kind and strides, or a seeded one."""
    layer = nn.Linear(k, n, dtype=dtype)
    layer.weight = nn.Parameter(values(n, k, seed=seed, dtype=dtype) if weight is None else weight)
    return layer


def linears(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linears of these (n, k), each of another seed; not meant to be run one after the other."""
    return nn.Sequential(*(linear(n, k, seed=seed, dtype=dtype) for seed, (n, k) in enumerate(shapes)))


def snapshot(module: nn.Module) -> dict[str, bytes]:
    """Every bit of its state."""
    return {name: t.numpy().tobytes() for name, t in module.state_dict().items()}
