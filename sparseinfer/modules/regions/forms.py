"""The ways in which models write the steps of a network that are no layers: padding, means, products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.modules.activations import activation_name
from sparseinfer.modules.chain import FoldedLayer
from sparseinfer.modules.conv import SparseConv2d
from sparseinfer.modules.regions.trace import Call, Value

ADDITIONS = frozenset({Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, torch.add})
# Layers that return their input when they are not in training.
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
_IN_PLACE = frozenset({Tensor.add_, Tensor.__iadd__, Tensor.relu_, torch.relu_, F.relu_})
_MAY_BE_IN_PLACE = frozenset({F.relu, F.silu, F.relu6, F.hardswish, F.hardsigmoid})
PRODUCTS = frozenset({torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__})
_METHODS = {
    **dict.fromkeys((Tensor.relu, Tensor.relu_, torch.relu_, F.relu_), "relu"),
    Tensor.sigmoid: "sigmoid",
}
_HEIGHT_AND_WIDTH = ({2, 3}, {-2, -1})


@dataclass(frozen=True)
class Padded:
    """A convolution of its input with zeros around it; pads: left, right, top, bottom, as F.pad has them."""

    layer: nn.Module
    pads: tuple[int, int, int, int]

    def __call__(self, x: Tensor) -> Any:
        return self.layer(F.pad(x, self.pads))


def with_padded(calls: Sequence[Call], uses: Counter[int]) -> list[tuple[int, Call]]:
    """The calls with the numbers of their values; a padding that the next call, a convolution, alone uses is
    part of it.

    Not of a later call: what lies between could write to the input of the padding, which has copied it.
    """
    found: list[tuple[int, Call]] = []
    for number, call in enumerate(calls, start=1):
        pads = _zeros_around(calls[number - 2]) if number > 1 else None
        layer = call.function
        plain = layer.plain if isinstance(layer, FoldedLayer) else layer
        reads = [arg.number for arg in call.args if isinstance(arg, Value)]
        alone = len(call.args) == 1 and not call.kwargs and reads == [number - 1] and uses[number - 1] == 1
        if pads is None or not alone or type(plain) not in (nn.Conv2d, SparseConv2d):
            found.append((number, call))
        else:
            found[-1] = number, Call(Padded(layer, pads), calls[number - 2].args[:1], {})
    return found


def _zeros_around(call: Call) -> tuple[int, int, int, int] | None:
    function: Any = call.function
    if type(function) in (nn.ZeroPad2d, nn.ConstantPad2d):
        value, pads, plain = function.value, function.padding, len(call.args) == 1 and not call.kwargs
    elif function is F.pad:
        given = dict(zip(("input", "pad", "mode", "value"), call.args, strict=False)) | call.kwargs
        value, pads = given.get("value"), given.get("pad")
        plain = given.get("mode", "constant") == "constant" and isinstance(call.args[0], Value)
    else:
        return None
    is_zero = value is None or (isinstance(value, (int, float)) and value == 0)
    if not plain or not is_zero or not isinstance(pads, (tuple, list)) or len(pads) != 4:
        return None
    if not all(type(pad) is int and pad >= 0 for pad in pads):
        return None
    left, right, top, bottom = pads
    return left, right, top, bottom


def writes(call: Call) -> bool:
    """Whether it may write to its first input."""
    function = call.function
    if function in _MAY_BE_IN_PLACE and call.args[1:] not in ((), (False,)):
        return True
    return bool(function in _IN_PLACE or getattr(function, "inplace", False) or call.kwargs.get("inplace"))


def is_mean(call: Call) -> bool:
    """Whether it is the mean of each channel as [b, c, 1, 1]."""
    function: Any = call.function
    if type(function) is nn.AdaptiveAvgPool2d:
        return _is_one(function.output_size) and len(call.args) == 1 and not call.kwargs
    if not call.args or not isinstance(call.args[0], Value):
        return False
    if function is F.adaptive_avg_pool2d:
        given = dict(zip(("output_size",), call.args[1:], strict=False)) | call.kwargs
        return set(given) == {"output_size"} and _is_one(given["output_size"])
    if function in (torch.mean, Tensor.mean):
        given = dict(zip(("dim", "keepdim"), call.args[1:], strict=False)) | call.kwargs
        axes = given.get("dim")
        is_whole = isinstance(axes, (tuple, list)) and len(axes) == 2 and set(axes) in _HEIGHT_AND_WIDTH
        return set(given) == {"dim", "keepdim"} and given["keepdim"] is True and is_whole
    return False


def _is_one(size: Any) -> bool:
    return size == 1 or (isinstance(size, (tuple, list)) and [*size] == [1, 1])


def activation_of(call: Call) -> str:
    """The name in `ops.ACTIVATIONS` of what it computes; "none" for any other call."""
    function = call.function
    if call.kwargs and (isinstance(function, nn.Module) or set(call.kwargs) != {"inplace"}):
        return "none"
    return _METHODS.get(function) or activation_name(function)
