"""Networks of convolutions that native code computes image by image, without results between the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.arguments import number_of_activation
from sparseinfer.ops.cpu.trust import address

# The number of a value that is not there.
NO_VALUE = -1
_PAIR = (1, 1)


@dataclass
class Step:
    """One step: reads values and makes the next one. Values are numbered: inputs, then results.

    kind        "conv", "depthwise", "max_pool", "mean" (of each channel), "add" or "scale"
    x, other    numbers of values; y = activation(factors · result + bias + other), of "add" the result is x;
                of "scale" y = activation(x · other), with one pixel of other; a pooling has none of these
    window      kernel size, stride, padding, dilation, each (height, width)
    padding_after   below and right, where that of `window` is above and left; None: the same
    kernel      of "conv", which reads `packings`, one for each group
    weights     of "depthwise", float32 [n, 1, kh, kw], contiguous
    n           channels of the result
    factors, bias   float32 [n], contiguous, or None
    """

    kind: str
    x: int
    other: int = NO_VALUE
    activation: str = "none"
    window: tuple[Sequence[int], ...] = (_PAIR, _PAIR, (0, 0), _PAIR)
    padding_after: Sequence[int] | None = None
    kernel: int = 0
    packings: Sequence[Tensor] = ()
    weights: Tensor | None = None
    n: int = 0
    factors: Tensor | None = None
    bias: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Those that native code reads at fixed addresses, besides packings."""
        return [t for t in (self.weights, self.factors, self.bias) if t is not None]

    def arguments(self) -> Any:
        return (
            self.kind,
            self.x,
            self.other,
            number_of_activation(self.activation),
            tuple(map(tuple, self.window)),
            tuple(self.window[2] if self.padding_after is None else self.padding_after),
            self.kernel,
            [address(packed) for packed in self.packings],
            _address(self.weights),
            self.n,
            _address(self.factors),
            _address(self.bias),
        )


@dataclass
class Network:
    """Steps for float32 images on the CPU; `outputs` are numbers of values.

    ValueError: numbers or sizes that do not fit. Tensors of the steps are read where they lie.
    """

    inputs: int
    steps: Sequence[Step]
    outputs: Sequence[int]
    _packings: list[Tensor] = field(init=False)
    _tensors: list[Tensor] = field(init=False)
    _sizes: list[torch.Size] = field(init=False)

    def __post_init__(self) -> None:
        self._packings = [packed for step in self.steps for packed in step.packings]
        self._tensors = [t for step in self.steps for t in step.tensors()]
        self._sizes = [t.shape for t in self._tensors]
        self._make()

    def _make(self) -> None:
        for t, size in zip(self._tensors, self._sizes, strict=True):
            if t.dtype != torch.float32 or not t.is_cpu or not t.is_contiguous() or t.shape != size:
                raise ValueError(
                    f"steps: expected contiguous float32 on the CPU, got {t.dtype} {tuple(t.shape)}"
                )
        self._addresses = self._now()
        steps = [step.arguments() for step in self.steps]
        self._native = core.Network(self.inputs, steps, list(self.outputs))

    def _now(self) -> tuple[list[object], ...]:
        tensors = self._tensors
        return [*map(address, self._packings)], [t.data_ptr() for t in tensors], [t.dtype for t in tensors]

    def run(self, xs: Sequence[Tensor], *, parts: int = 0) -> list[Tensor]:
        """Outputs [b, c, h, w] of inputs [b, c, h, w], contiguous float32 on the CPU. ValueError: others."""
        if self._now() != self._addresses:
            self._make()
        batch = xs[0].shape[0]
        for x in xs:
            if x.dim() != 4 or x.shape[0] != batch or x.dtype != torch.float32 or not x.is_contiguous():
                raise ValueError(f"x: expected contiguous float32 [{batch}, c, h, w], got {tuple(x.shape)}")
        shapes = [tuple(x.shape[1:]) for x in xs]
        ys = [xs[0].new_empty((batch, *shape)) for shape in self._native.output_shapes(shapes)]
        self._native.run(
            batch,
            [(x.data_ptr(), shape) for x, shape in zip(xs, shapes, strict=True)],
            [(y.data_ptr(), tuple(y.shape[1:])) for y in ys],
            parts,
        )
        return ys


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
