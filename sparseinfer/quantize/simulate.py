"""Activations in int8 by plain torch: what a quantized model returns, whatever kernels there are.

A token's integers q, its scale s and zero point z stand for the inputs s · (q - z); with the integers p and
the scales t of a weight, an output is s · t · Σ (q - z) · p, plus the bias. The sum is of integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._int8 import integers_of
from sparseinfer._transposed import is_transposed_linear
from sparseinfer.prune.layers.kinds import kinds_of
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.names import weight_key

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def quantized_tokens(x: Tensor, *, signed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [..., k], scale and zero point [..., 1] of each token, float32, by its own range.

    signed  False: from 0 to 255; the range is extended to hold zero, which is exact. True: from -127 to 127
            with zero point 0

    A token of zeros has the scale 1. One with NaN or an infinity becomes NaN as a whole.
    """
    x = x.to(torch.float32)
    if signed:
        scale = _or_one(x.abs().amax(-1, keepdim=True) / 127)
        return (x / scale).round().clamp(-127, 127), scale, torch.zeros_like(scale)
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = _or_one(high / 255 - low / 255)  # no difference can overflow
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255), scale, zero


def static_tokens(x: Tensor, scale: Tensor, zero: Tensor, *, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same with one scale and zero point, of StaticInputs, for all; what lies outside is clipped."""
    low, high = (-127, 127) if signed else (0, 255)
    integers = ((x.to(torch.float32) / scale).round() + zero).clamp(low, high)
    return integers, scale, zero.to(torch.float32)


def integer_product(
    tokens: tuple[Tensor, Tensor, Tensor],
    weight: tuple[Tensor, Tensor],
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """float32 [..., n], of tokens [..., k] and a weight's integers [..., n, k] and scales [..., n].

    dtype  the sums are computed in; float64 is exact up to k = 2**38
    """
    (q, scale, zero), (integers, scales) = tokens, weight
    sums = (q - zero).to(dtype) @ integers.to(dtype).mT
    y = (sums * scale.to(dtype) * scales[..., None, :].to(dtype)).to(torch.float32)
    return y if bias is None else y + bias


@contextmanager
def simulated(
    model: nn.Module, *, signed: bool = False, static: bool = False, dtype: torch.dtype = torch.float32
) -> Iterator[list[str]]:
    """While it is open, quantized layers compute from int8 activations; gives the names of those that do not.

    signed  see `quantized_tokens`
    static  use the layers' `input_scale` and `input_zero_point`, of the same `signed`, where they have them
    dtype   of the sums, see `integer_product`

    Layers are nn.Linear, nn.Conv1d, nn.Conv2d and transformers' Conv1D; a token of a convolution is a pixel
    of its output with all that it reads. Other quantized weights, of attention and recurrent layers, compute
    from float activations.
    """
    others, handles = [], []
    try:
        for fqn, module in model.named_modules():
            for parameter, kind in kinds_of(module).items():
                found = integers_of(module, parameter)
                if found is None:
                    continue
                if not isinstance(module, _LAYERS) and not is_transposed_linear(module):
                    others.append(weight_key(fqn, parameter))
                    continue
                layer = Layer(fqn, module, module.get_parameter(parameter))
                shape = layer.shape
                weight = (found[0].view(shape), found[1].view(shape[:2]))
                hook = _Simulation(layer, weight, signed, static, dtype)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
                assert kind.read is not None
        yield others
    finally:
        for handle in handles:
            handle.remove()


class _Simulation:
    """A forward hook that computes a layer's output anew."""

    def __init__(
        self, layer: Layer, weight: tuple[Tensor, Tensor], signed: bool, static: bool, dtype: torch.dtype
    ) -> None:
        self._layer, self._weight, self._dtype = layer, weight, dtype
        self._signed, self._static = signed, static

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        x = self._layer.unfold(self._layer.inputs(args, kwargs))
        y = integer_product(self._tokens(x), self._weight, dtype=self._dtype)
        if not self._layer.is_conv:
            y = y.reshape(output.shape)
            bias = self._layer.bias
        else:
            spatial = self._layer.weight.dim() - 2
            pixels = output.shape[-spatial:].numel()
            # [groups, batch · pixels, n] -> [batch, groups · n, pixels]
            y = y.unflatten(1, (-1, pixels)).permute(1, 0, 3, 2).reshape(output.shape)
            bias = self._layer.bias
            bias = None if bias is None else bias.view(-1, *[1] * spatial)
        return (y if bias is None else y + bias).to(output.dtype)

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        buffers = self._layer.module._buffers
        if self._static and (scale := buffers.get("input_scale")) is not None:
            zero = buffers["input_zero_point"]
            assert zero is not None
            return static_tokens(x, scale, zero, signed=self._signed)
        return quantized_tokens(x, signed=self._signed)


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)
