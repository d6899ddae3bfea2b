"""Networks of inverted bottlenecks: MobileNetV2 and EfficientNet-lite0, as published, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Of each stage: expansion, channels, blocks, stride, kernel size.
_MOBILENET_V2 = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3)),
    *((6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
)
_LITE0 = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5)),
    *((6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


def mobilenet_v2() -> nn.Module:
    """Sandler et al., 2018; random weights. Images [b, 3, h, w] -> logits [b, 1000]."""
    return InvertedNetwork(_MOBILENET_V2, eps=1e-5, as_tensorflow=False)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-lite0 of tensorflow/tpu, 2020; random weights. Images [b, 3, 224, 224] -> [b, 1000]."""
    return InvertedNetwork(_LITE0, eps=1e-3, as_tensorflow=True)


class InvertedNetwork(nn.Module):
    """A stem, stages of inverted bottlenecks, a head; parameters in the order in which they are used.

    as_tensorflow   strided convolutions pad even images as TensorFlow's "same": below and right of them more
    """

    def __init__(self, stages: Sequence[tuple[int, ...]], *, eps: float, as_tensorflow: bool) -> None:
        super().__init__()
        self.stem = _layers(3, _STEM, 3, 2, eps=eps, as_tensorflow=as_tensorflow)
        blocks, channels = [], _STEM
        for expansion, out, count, first_stride, size in stages:
            for i in range(count):
                stride = first_stride if i == 0 else 1
                blocks.append(_Inverted(channels, expansion, out, size, stride, eps, as_tensorflow))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _layers(channels, _HEAD, 1, 1, eps=eps)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


class _Inverted(nn.Module):
    def __init__(
        self,
        channels: int,
        expansion: int,
        out: int,
        size: int,
        stride: int,
        eps: float,
        as_tensorflow: bool,
    ) -> None:
        super().__init__()
        wide = expansion * channels
        self.expand = _layers(channels, wide, 1, 1, eps=eps) if expansion > 1 else nn.Sequential()
        self.depthwise = _layers(wide, wide, size, stride, eps=eps, groups=wide, as_tensorflow=as_tensorflow)
        self.project = nn.Sequential(nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out, eps))
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


def _layers(
    channels: int,
    out: int,
    size: int,
    stride: int,
    *,
    eps: float,
    groups: int = 1,
    as_tensorflow: bool = False,
) -> nn.Sequential:
    around = as_tensorflow and stride > 1
    total = size - stride
    pads = (total // 2, total - total // 2) * 2
    return nn.Sequential(
        *([nn.ZeroPad2d(pads)] if around else []),
        nn.Conv2d(channels, out, size, stride, 0 if around else size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps),
        nn.ReLU6(inplace=True),
    )
