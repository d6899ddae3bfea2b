"""Small networks of convolutions for the tests of regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sparseinfer as si


def randomize_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for t, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                assert t is not None
                t.data.uniform_(low, high)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=True)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    """With what the real ones have: a dense stem, poolings, blocks with and without strides, a Linear."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Bottleneck(width, width, 64), Bottleneck(64, width, 64))
        self.layer2 = nn.Sequential(Bottleneck(64, 2 * width, 128, 2), Bottleneck(128, 2 * width, 128))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        y = self.avgpool(self.layer2(self.layer1(y)))
        return self.fc(torch.flatten(y, 1))


class Inverted(nn.Module):
    """A block of MobileNetV2: 1x1, depthwise, 1x1."""

    def __init__(self, channels: int, out: int, stride: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        width = 4 * channels
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), activation()),
            *(nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width)),
            *(activation(), nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


def mobile_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU()),
        *(Inverted(16, 16, 1), Inverted(16, 24, 2, nn.SiLU), Inverted(24, 24, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)),
    )


def converted(model: nn.Module, x: Tensor, sparsity: float = 0.8, **options: Any) -> nn.Module:
    """Pruned in place, but for stem and depthwise convolutions, and converted; layers are sparse."""
    randomize_norms(model)
    ignore = [
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] in (1, 3)
    ]
    ignore += [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    si.prune_(model.eval(), si.Magnitude(sparsity), ignore=ignore, keep_masks=False, progress=False)
    settings = {"measure": False, "memory": "compact", "fold_batch_norm": True, **options}
    return si.convert(model, example_inputs=(x,), **settings)
