"""What the mask tests share: a small model whose units are all alive, its masks, and training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparseinfer._timing import num_threads
from sparseinfer.prune import masks_of

STEPS = 100
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd-momentum-decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


def model(seed: int = 0) -> nn.Sequential:
    """x [batch, 3, 8] -> [batch, 2]: a convolution and two Linears."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 2)
    )


def random_masks(net: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Keep two fifths, and every input of the first output, so that no unit is dead."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for fqn, module in net.named_modules():
        if hasattr(module, "weight"):
            masks[fqn] = torch.rand(module.weight.shape, generator=generator) < 0.4
            masks[fqn][0] = True
    return masks


def data(seed: int = 0, batch: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, 8, generator=generator)
    return x, x[:, :2, 0]


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of training."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    x, y = data()
    with num_threads(1):
        for _ in range(steps):
            descend(optimizer, nn.functional.mse_loss(net(x), y))


def assert_held(net: nn.Module, masks: dict[str, Tensor]) -> None:
    """The masks are these bit for bit, and each weight is zero there, and only there."""
    held = masks_of(net)
    assert list(held) == list(masks)
    for fqn, mask in masks.items():
        assert held[fqn].dtype == torch.bool
        assert torch.equal(held[fqn], mask)
        assert torch.equal(net.get_submodule(fqn).weight != 0, mask)
