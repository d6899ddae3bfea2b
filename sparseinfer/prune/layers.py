"""The layers that can be pruned, each seen as one matrix per group, and their inputs unfolded to fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparseinfer._select import FilterFn, Patterns, is_transposed_linear, select_modules

TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True, eq=False)
class Layer:
    """One prunable weight, which criteria and solvers see as [groups, n, k]: output = matrix · inputᵀ.

    Kinds: nn.Linear, nn.Conv1d and nn.Conv2d of any kernel, stride, dilation, padding, padding mode and
    groups, and transformers' Conv1D, which holds its weight as [k, n].

    fqn      fully qualified name of the module; "" for the model itself
    module   the module that holds it
    weight   the parameter, in the module's own shape

    n is the number of outputs in a group, k that of inputs of one output: of a convolution the channels of a
    group times the kernel's positions, (c / groups)·kh·kw, in the weight's own order.
    """

    fqn: str
    module: nn.Module
    weight: nn.Parameter

    @property
    def name(self) -> str:
        """Of the weight, for messages."""
        return f"{self.fqn}.weight".removeprefix(".")

    @property
    def is_conv(self) -> bool:
        return isinstance(self.module, (nn.Conv1d, nn.Conv2d))

    @property
    def groups(self) -> int:
        """1 unless it is a grouped convolution."""
        return int(self.module.groups) if self.is_conv else 1  # type: ignore[arg-type]

    @property
    def positions(self) -> int:
        """How many neighbouring columns of the matrix read one input channel: kh·kw; 1 of a linear layer."""
        return math.prod(self.weight.shape[2:])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, n and k of the matrix."""
        if is_transposed_linear(self.module):
            return 1, self.weight.shape[1], self.weight.shape[0]
        n, *inputs = self.weight.shape
        return self.groups, n // self.groups, math.prod(inputs)

    def matrix(self, tensor: Tensor | None = None) -> Tensor:
        """The weight, detached, or a tensor of its shape (mask, gradient) as [groups, n, k].

        A view; a copy only of a convolution's tensor that is not contiguous.
        """
        tensor = self.weight.detach() if tensor is None else tensor
        return (tensor.t() if is_transposed_linear(self.module) else tensor).reshape(self.shape)

    def unmatrix(self, matrix: Tensor) -> Tensor:
        """A matrix [groups, n, k] in the weight's own shape: the way back from `matrix`."""
        if is_transposed_linear(self.module):
            return matrix[0].t()
        return matrix.reshape(self.weight.shape)

    def unfold(self, x: Tensor) -> Tensor:
        """An input of the module as [groups, tokens, k]: `matrix() @ unfold(x).mT` is its output, less bias.

        x  [..., k] of a linear layer; [batch, c, length] or [batch, c, h, w], or without batch, of a
           convolution

        A token is one row of a linear layer's input, or one pixel of a convolution's output. A view of x for
        a linear layer; for a convolution a copy, kh·kw / stride² times as large as x.
        """
        if not self.is_conv:
            return x.reshape(1, x.shape[:-1].numel(), x.shape[-1])
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


def prunable_layers(
    model: nn.Module,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> dict[str, Layer]:
    """The selected layers by name, in the order of the model; a shared weight is there once.

    A warning names modules that were not selected but share a selected weight. TypeError or ValueError: an
    argument of the wrong kind (see sparseinfer._select.select_modules), or a selected weight that cannot be
    pruned in place: not yet materialised (lazy or meta), holding NaN, expanded, an inference tensor, or
    computed from other parameters by torch.nn.utils.prune or a parametrization, which would overwrite the
    zeros on the next forward.
    """
    modules = select_modules(
        model, (*TYPES, *_transposed_types(model)), filter_fn, targets, ignore, stacklevel=4
    )
    layers: dict[str, Layer] = {}
    seen: set[object] = set()
    for fqn, module in modules.items():
        weight = _prunable_weight(fqn, module)
        if _memory(weight) not in seen:
            seen.add(_memory(weight))
            layers[fqn] = Layer(fqn, module, weight)
    _warn_of_other_owners(model, modules, layers)
    return layers


def _transposed_types(model: nn.Module) -> set[type[nn.Module]]:
    if not isinstance(model, nn.Module):
        return set()
    return {type(module) for module in model.modules() if is_transposed_linear(module)}


def _prunable_weight(fqn: str, module: nn.Module) -> nn.Parameter:
    """The parameter `weight` of a module, after every check that keeps the later write from failing."""
    name = f"{fqn}.weight".removeprefix(".")
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(f"{name}: expected a parameter, got a tensor computed by {_computed_by(module)}")
    if is_lazy(weight):
        raise ValueError(f"{name}: expected an initialised weight, got a lazy one (run the model once first)")
    if weight.is_meta:
        raise ValueError(f"{name}: expected a weight with data, got a meta tensor (load the model first)")
    if weight.layout != torch.strided or not weight.is_floating_point():
        raise TypeError(
            f"{name}: expected a dense floating-point weight, got {weight.dtype}, {weight.layout}"
        )
    if any(stride == 0 and size > 1 for stride, size in zip(weight.stride(), weight.shape, strict=True)):
        hint = "give the module a .clone() of it"
        raise ValueError(f"{name}: expected one memory cell per weight, got an expanded tensor ({hint})")
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        hint = "call prune_ under torch.inference_mode()"
        raise ValueError(f"{name}: expected a writable weight, got an inference tensor ({hint})")
    if nans := int(weight.detach().isnan().sum()):
        raise ValueError(f"{name}: expected numbers, got {nans} NaN (the rank of a NaN is undefined)")
    return weight


def _computed_by(module: nn.Module) -> str:
    if parametrize.is_parametrized(module, "weight"):
        call = "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
        return f"a parametrization (call {call} first)"
    if hasattr(module, "weight_mask"):
        return "torch.nn.utils.prune (call torch.nn.utils.prune.remove(module, 'weight') first)"
    return "the module (make it a parameter first)"


def _memory(weight: Tensor) -> object:
    """Equal for two tensors that are the same memory read the same way."""
    if not weight.numel():
        return id(weight)
    return weight.device, weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


def _warn_of_other_owners(
    model: nn.Module, modules: Mapping[str, nn.Module], layers: Mapping[str, Layer]
) -> None:
    pruned = {id(layer.weight): fqn for fqn, layer in layers.items()}
    selected = set(modules.values())
    for fqn, module in model.named_modules():
        if module in selected:
            continue
        for name, parameter in module.named_parameters(prefix=fqn, recurse=False):
            if id(parameter) in pruned:
                owner = pruned[id(parameter)]
                hint = f"ignore=[{owner!r}] keeps both"
                message = f"{name}: not selected, but pruned too, because {owner!r} shares it ({hint})"
                # 4 = the caller of prune_ or calibrate, which calls prunable_layers.
                warnings.warn(message, UserWarning, stacklevel=4)
