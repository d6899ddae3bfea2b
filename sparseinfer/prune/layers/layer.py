"""Layer: one prunable weight viewed as one matrix per group, and its inputs unfolded to match."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sparseinfer.prune.layers.kinds import Kind, kinds_of, output_inputs
from sparseinfer.prune.layers.names import parameter_name


@dataclass(frozen=True, eq=False)
class Layer:
    """One prunable weight, viewed by criteria and solvers as [groups, n, k]: output = matrix · inputᵀ.

    Kinds: nn.Linear, nn.Conv1d and nn.Conv2d of any kernel, stride, dilation, padding, padding mode and
    groups, and transformers' Conv1D, which holds its weight as [k, n]; the projections of
    nn.MultiheadAttention; the weights of nn.LSTM, nn.GRU, nn.RNN and their cells; experts of transformers.

    fqn        its name in statistics, masks and reports: the fully qualified name of its module, ""
               for the model itself, where the parameter is called `weight`; else that of the parameter
    module     the module that holds it
    weight     the parameter, in the module's own shape
    parameter  its name in the module
    is_seen    whether calibration can record its inputs; if not, only methods without input statistics prune
    it attention  the attention that it is the output projection of; its calls are recorded instead

    n is the number of outputs in a group, k that of inputs of one output: of a convolution the channels of a
    group times the kernel's positions, (c / groups)·kh·kw, in the weight's own order. A group is one of
    several matrices in a weight, each with inputs of its own: of a grouped convolution; the projections into
    queries, keys and values where they are one parameter, [3·e, e]; one for each expert. Together they are
    one layer: a sparsity counts over all of them. The gates of a recurrent layer are one matrix.
    """

    fqn: str
    module: nn.Module
    weight: nn.Parameter
    parameter: str = "weight"
    is_seen: bool = True
    attention: nn.MultiheadAttention | None = None

    @property
    def name(self) -> str:
        """The weight's name, for error messages."""
        return self.fqn if self.parameter != "weight" else parameter_name(self.fqn, "weight")

    @cached_property
    def _kind(self) -> Kind:
        return kinds_of(self.module)[self.parameter]

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution."""
        return isinstance(self.module, (nn.Conv1d, nn.Conv2d))

    @property
    def groups(self) -> int:
        """Number of matrices in the weight, mostly 1."""
        return self._kind.groups

    @property
    def positions(self) -> int:
        """How many neighbouring columns of the matrix read one input channel: kh·kw; 1 without a kernel."""
        return math.prod(self.weight.shape[2:]) if self.is_conv else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, n and k of the matrix."""
        if self._kind.transposed:
            return self.groups, self.weight.shape[-1], self.weight.shape[-2]
        if not self.is_conv:
            k = self.weight.shape[-1]
            return self.groups, math.prod(self.weight.shape[:-1]) // max(self.groups, 1), k
        n, *inputs = self.weight.shape
        return self.groups, n // self.groups, math.prod(inputs)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a convolution's weight; for others (n, k) of one matrix."""
        return tuple(self.weight.shape) if self.is_conv else self.shape[1:]

    @property
    def bias(self) -> Tensor | None:
        """The bias of its outputs, if it is a separate tensor."""
        bias = getattr(self.module, self.parameter.replace("weight", "bias"), None)
        return bias if isinstance(bias, Tensor) else None

    def matrix(self, tensor: Tensor | None = None) -> Tensor:
        """The weight, detached, or a tensor of its shape (mask, gradient) as [groups, n, k].

        A view; a copy only of a convolution's tensor that is not contiguous.
        """
        tensor = self.weight.detach() if tensor is None else tensor
        return (tensor.mT if self._kind.transposed else tensor).reshape(self.shape)

    def unmatrix(self, matrix: Tensor) -> Tensor:
        """A matrix [groups, n, k] in the weight's own shape: the inverse of `matrix`."""
        return (matrix.mT if self._kind.transposed else matrix).reshape(self.weight.shape)

    @property
    def called(self) -> nn.Module:
        """The module whose calls have its inputs."""
        return self.attention or self.module

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The input of the weight in a call of `called` with these arguments; only where `is_seen`."""
        if self.attention is not None:
            return output_inputs(self.attention, args, kwargs)
        assert self._kind.read is not None
        return self._kind.read(args, kwargs)

    def unfold(self, x: Tensor) -> Tensor:
        """An input, of `inputs`, as [groups, tokens, k]: `matrix() @ unfold(x).mT` is its output, less bias.

        x  [..., k] of a linear layer; [batch, c, length] or [batch, c, h, w], or without batch, of a
           convolution; [groups, tokens, k] of several matrices in one weight

        A token is one row of a linear layer's input, or one pixel of a convolution's output. A view of x for
        a linear layer; for a convolution a copy, kh·kw / stride² times as large as x.
        """
        if not self.is_conv:
            return x if self.groups > 1 else x.reshape(1, x.shape[:-1].numel(), x.shape[-1])
        conv: Any = self.module
        spatial = len(conv.kernel_size)
        if x.dim() == spatial + 1:
            x = x[None]
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        if spatial == 1:
            x = x[:, :, None]
        kernel, dilation, stride = (_pair(size) for size in (conv.kernel_size, conv.dilation, conv.stride))
        windows = F.unfold(x, kernel, dilation=dilation, stride=stride)  # [batch, c·kh·kw, pixels]
        windows = windows.unflatten(1, (self.groups, -1))
        return windows.permute(1, 0, 3, 2).reshape(self.groups, -1, windows.shape[2])


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    return (1, size[0]) if len(size) == 1 else (size[0], size[1])
