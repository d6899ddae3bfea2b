"""Dense convolutions with the batch norm and sum after them as one call of oneDNN each, and the activation.

For modules without sparse convolutions. Results stay in channels_last from one layer to the next; weights are
multiplied by their batch norms and laid out for the shape of the input, as torch.compile does it for frozen
models (torch._inductor). The model's own weights stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.modules.chain import affine_of
from sparseinfer.modules.regions.forms import ADDITIONS, NOTHING, activation_of, writes
from sparseinfer.modules.regions.lower import Copied, is_norm, window_of
from sparseinfer.modules.regions.trace import Call, Recorded, Refused, Value

# Layers whose result is new memory.
_MAKERS = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
# Of a weight, so many values are compared at every call, and torch's count of writes to it.
_COMPARED = 256


@dataclass
class Fused:
    """y = activation(norm(conv(x)) + other), in channels_last.

    x, other   numbers of values; other: None where nothing is added
    """

    conv: nn.Conv2d
    x: int
    norm: nn.BatchNorm2d | None = None
    other: int | None = None
    activation: str = "none"
    _packed: dict[torch.Size, tuple[Tensor, Tensor | None, torch.Size]] = field(default_factory=dict)

    def run(self, x: Tensor, other: Tensor | None) -> Any:
        """ValueError: an image that the convolution does not take."""
        conv = self.conv
        packed = self._packed.get(x.shape)
        if packed is None:
            packed = self._packed[x.shape] = self._pack(x.shape)
        weight, bias, shape = packed
        x = x.contiguous(memory_format=torch.channels_last)
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        convolution: Any = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            y = convolution(x, weight, bias, *geometry, "none", [], "")
        elif other.shape != shape or other.dtype != torch.float32:
            y = convolution(x, weight, bias, *geometry, "none", [], "") + other
        else:
            other = other.contiguous(memory_format=torch.channels_last)
            y = convolution.binary(x, other, weight, bias, *geometry, "add", 1.0, None, [], "")
        # Not by oneDNN, whose relu of NaN is 0.
        return torch.relu_(y) if self.activation == "relu" else ops.ACTIVATIONS[self.activation](y)

    def _pack(self, shape: torch.Size) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Weight and bias for an input of this shape, and the shape of its result."""
        conv = self.conv
        if len(shape) != 4 or shape[1] != conv.in_channels or 0 in shape:
            raise ValueError(f"x: expected [b, {conv.in_channels}, h, w], got {tuple(shape)}")
        kernel, stride, padding, dilation = window_of(conv)
        padded = [shape[i + 2] + 2 * padding[i] - (kernel[i] - 1) * dilation[i] - 1 for i in range(2)]
        if min(padded) < 0:
            raise ValueError(f"x: expected an image that is not smaller than the kernel, got {tuple(shape)}")
        weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach().clone()
        if self.norm is not None:
            scale, shift = affine_of(self.norm)
            bias = (shift if bias is None else scale * bias.double() + shift).float()
            weight = (weight.double() * scale.view(-1, 1, 1, 1)).float()
        reorder: Any = torch.ops.mkldnn._reorder_convolution_weight
        weight = weight.contiguous(memory_format=torch.channels_last)
        weight = reorder(weight, conv.padding, conv.stride, conv.dilation, conv.groups, shape)
        sizes = (n // s + 1 for n, s in zip(padded, stride, strict=True))
        return weight, bias, torch.Size((shape[0], conv.out_channels, *sizes))

    def layers(self) -> list[nn.Module]:
        return [layer for layer in (self.conv, self.norm) if layer is not None]

    def copied(self) -> list[Copied]:
        """What is compared at every call: of the weight its first values, of vectors all."""
        weight, norm = self.conv.weight.detach(), self.norm
        first = weight.as_strided((min(_COMPARED, weight.numel()),), (1,))
        held: list[Any] = [(first, None, None, None)]
        if self.conv.bias is not None:
            held.append((self.conv.bias, None, None, None))
        if norm is not None:
            held.append((norm.running_mean, norm.running_var, norm.weight, norm.bias))
        kept: list[Any] = [tuple(t if t is None else t.detach().clone() for t in one) for one in held]
        return [(one, ops.Kept(values)) for one, values in zip(held, kept, strict=True)]


# The number of the value that it makes, and how.
FusedPart: TypeAlias = "tuple[int, Fused | Call]"


def fused(recorded: Recorded) -> list[FusedPart]:
    """The calls in order; what oneDNN computes together is one, where the last of its calls was.

    Refused: a call writes to a tensor that others may read.
    """
    uses = Counter(number for call in recorded.calls for number in call.reads())
    uses.update(leaf.number for leaf in recorded.leaves if isinstance(leaf, Value))
    parts: dict[int, Fused | Call] = {}
    alone: set[int] = set()  # values that nothing else refers to
    for number, call in enumerate(recorded.calls, start=1):
        reads = call.reads()
        if writes(call) and not (reads[0] in alone and uses[reads[0]] == 1):
            raise Refused("its forward writes to what it reads elsewhere")
        makes = (
            isinstance(call.function, _MAKERS) or activation_of(call) != "none" or call.function in ADDITIONS
        )
        passes = isinstance(call.function, NOTHING) and all(i in alone and uses[i] == 1 for i in reads)
        if makes or passes:
            alone.add(number)
        last, part = _with_call(call, reads, uses, parts)
        if last is not None:
            del parts[last]
        parts[number] = part
    return list(parts.items())


def _with_call(
    call: Call, reads: Sequence[int], uses: Counter[int], parts: dict[int, Fused | Call]
) -> tuple[int | None, Fused | Call]:
    """What computes the call, and the number of the earlier part that it goes on with."""
    function: Any = call.function
    if type(function) is nn.Conv2d and len(call.args) == 1 and not call.kwargs and _is_dense(function):
        return None, Fused(function, reads[0])
    for last in sorted(set(reads), reverse=True):
        step = parts.get(last)
        if uses[last] == 1 and isinstance(step, Fused) and _goes_on(step, call, last, reads):
            return last, step
    return None, call


def _goes_on(step: Fused, call: Call, last: int, reads: Sequence[int]) -> bool:
    """Whether the call, which reads what the step makes, is part of the step now."""
    function: Any = call.function
    if isinstance(function, NOTHING):
        return not function.training or isinstance(function, nn.Identity)
    if step.activation != "none":
        return False
    name = activation_of(call)
    if name != "none" and len(call.args) == 1:
        step.activation = name
    elif step.other is None and step.norm is None and len(call.args) == 1 and is_norm(function):
        step.norm = function
    elif (
        step.other is None and function in ADDITIONS and len(reads) == len(call.args) == 2 and not call.kwargs
    ):
        (step.other,) = (i for i in reads if i != last)
    else:
        return False
    return True


def _is_dense(conv: nn.Conv2d) -> bool:
    held = [t for t in (conv.weight, conv.bias) if t is not None]
    plain = all(type(t) is nn.Parameter and t.dtype == torch.float32 and t.is_cpu for t in held)
    plain = plain and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    weight = conv.weight
    return plain and (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last))


class Writes:
    """Counts of torch's writes to weights.

    A write to a part of one that torch does not count, through `.data` or in inference mode, may go unseen;
    one to all of it changes the values that are compared.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = weights
        self._before = self._now()

    def _now(self) -> list[tuple[int, int]]:
        return [(t.data_ptr(), -1 if t.is_inference() else t._version) for t in self._weights]

    def none_since(self) -> bool:
        return self._now() == self._before
