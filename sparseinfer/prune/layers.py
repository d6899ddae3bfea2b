"""The layers that can be pruned, each seen as one matrix per group, and their inputs unfolded to fit."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparseinfer.prune.kinds import Kind, attention_outputs, kinds_of, output_inputs, prunable_types
from sparseinfer.select import FilterFn, Patterns, select_modules


@dataclass(frozen=True, eq=False)
class Layer:
    """One prunable weight, which criteria and solvers see as [groups, n, k]: output = matrix · inputᵀ.

    Kinds: nn.Linear, nn.Conv1d and nn.Conv2d of any kernel, stride, dilation, padding, padding mode and
    groups, and transformers' Conv1D, which holds its weight as [k, n]; the projections of
    nn.MultiheadAttention; the weights of nn.LSTM, nn.GRU, nn.RNN and their cells; experts of transformers.

    fqn        what it is called in statistics, masks and reports: the fully qualified name of its module, ""
               for the model itself, where the parameter is called `weight`; else that of the parameter
    module     the module that holds it
    weight     the parameter, in the module's own shape
    parameter  its name in the module
    is_seen    whether a calibration sees its inputs; without them only methods that need none prune it
    attention  whose call shows its inputs, if it is the output projection of one and never called itself

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
        """Of the weight, for messages."""
        return self.fqn if self.parameter != "weight" else f"{self.fqn}.weight".removeprefix(".")

    @cached_property
    def _kind(self) -> Kind:
        return kinds_of(self.module)[self.parameter]

    @property
    def is_conv(self) -> bool:
        return isinstance(self.module, (nn.Conv1d, nn.Conv2d))

    @property
    def groups(self) -> int:
        """Matrices in the weight: 1 of most."""
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
        """Of a convolution those of its weight; else n and k, of one matrix of several in a weight."""
        return tuple(self.weight.shape) if self.is_conv else self.shape[1:]

    @property
    def bias(self) -> Tensor | None:
        """What is added to its outputs, where it is a tensor of its own."""
        found = getattr(self.module, self.parameter.replace("weight", "bias"), None)
        return found if isinstance(found, Tensor) else None

    def matrix(self, tensor: Tensor | None = None) -> Tensor:
        """The weight, detached, or a tensor of its shape (mask, gradient) as [groups, n, k].

        A view; a copy only of a convolution's tensor that is not contiguous.
        """
        tensor = self.weight.detach() if tensor is None else tensor
        return (tensor.mT if self._kind.transposed else tensor).reshape(self.shape)

    def unmatrix(self, matrix: Tensor) -> Tensor:
        """A matrix [groups, n, k] in the weight's own shape: the way back from `matrix`."""
        return (matrix.mT if self._kind.transposed else matrix).reshape(self.weight.shape)

    @property
    def called(self) -> nn.Module:
        """The module whose calls show its inputs."""
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


def prunable_layers(
    model: nn.Module,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> dict[str, Layer]:
    """The selected layers by name, in the order of the model; a shared weight is there once.

    Names and patterns of `targets` and `ignore` select modules; those of a weight that is not called
    `weight`, such as "lstm.weight_hh_l0", that weight alone. `filter_fn` is asked for the module.

    A warning names modules that were not selected but share a selected weight. TypeError or ValueError: an
    argument of the wrong kind (see sparseinfer.select.select_modules), or a selected weight that cannot be
    pruned in place: not yet materialised (lazy or meta), holding NaN, expanded, an inference tensor, or
    computed from other parameters by torch.nn.utils.prune or a parametrization, which would overwrite the
    zeros on the next forward.
    """
    return _layers(model, filter_fn, targets, ignore, stacklevel=5)


def layers_named(model: nn.Module, names: Collection[str]) -> dict[str, Layer]:
    """Those of the model's layers that have such a name."""

    def holds_one(module: nn.Module, fqn: str) -> bool:
        return any(_layer_name(fqn, parameter) in names for parameter in kinds_of(module))

    found = _layers(model, holds_one, None, None, stacklevel=5, names=names)
    return {fqn: layer for fqn, layer in found.items() if fqn in names}


def _layers(
    model: nn.Module,
    filter_fn: FilterFn | None,
    targets: Patterns,
    ignore: Patterns,
    *,
    stacklevel: int,
    names: Collection[str] | None = None,
) -> dict[str, Layer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    own, types = _weights_by_own_name(model), prunable_types(model)
    owners = _owners(model, own, targets)
    modules = select_modules(model, types, filter_fn, owners, ignore, stacklevel=stacklevel)
    outputs = attention_outputs(model)
    layers: dict[str, Layer] = {}
    seen: set[object] = set()
    for module_fqn, module in modules.items():
        for parameter, kind in kinds_of(module).items():
            fqn = _layer_name(module_fqn, parameter)
            if names is not None and fqn not in names:
                continue
            if parameter != "weight" and not _is_chosen(own[module, parameter], module, targets, ignore):
                continue
            weight = _prunable_weight(module_fqn, module, parameter)
            if memory_of(weight) not in seen:
                seen.add(memory_of(weight))
                is_seen = kind.read is not None
                layers[fqn] = Layer(fqn, module, weight, parameter, is_seen, outputs.get(module))
    _warn_of_other_owners(model, modules, layers, stacklevel)
    return layers


def _layer_name(module_fqn: str, parameter: str) -> str:
    return module_fqn if parameter == "weight" else f"{module_fqn}.{parameter}".removeprefix(".")


def _weights_by_own_name(model: nn.Module) -> dict[tuple[nn.Module, str], list[tuple[str, str]]]:
    """Weights that are not called `weight`: all names of the module, and of the parameter under each."""
    found: dict[tuple[nn.Module, str], list[tuple[str, str]]] = {}
    for fqn, module in model.named_modules(remove_duplicate=False):
        for parameter in kinds_of(module):
            if parameter != "weight":
                names = found.setdefault((module, parameter), [])
                names.append((fqn, _layer_name(fqn, parameter)))
    return found


def _owners(
    model: nn.Module, own: Mapping[tuple[nn.Module, str], list[tuple[str, str]]], targets: Patterns
) -> Patterns:
    """The targets, and where one names a weight alone the weight's module, which a selection can find."""
    found = []
    for text in _texts(targets):
        owners = [names[0][0] for names in own.values() if any(matches(text, name) for _, name in names)]
        # A pattern that matches weights alone would be reported as one without a match.
        if not owners or any(matches(text, fqn) for fqn, module in model.named_modules() if kinds_of(module)):
            found.append(text)
        found += owners
    return list(dict.fromkeys(found)) if found else targets


def _is_chosen(names: list[tuple[str, str]], module: nn.Module, targets: Patterns, ignore: Patterns) -> bool:
    """Whether a weight of a selected module is meant too."""

    either = [name for both in names for name in both]
    return not is_named(ignore, module, *either) and (targets is None or is_named(targets, module, *either))


def is_named(patterns: Patterns, module: nn.Module, *names: str) -> bool:
    """Whether one of the patterns matches the module's class or one of these names."""
    classes = {base.__name__ for base in type(module).__mro__}
    texts = _texts(patterns)
    return any(text in classes or any(matches(text, name) for name in names) for text in texts)


def _texts(patterns: Patterns) -> list[str]:
    """Without a check: `select_modules` makes it."""
    if isinstance(patterns, str):
        return [patterns]
    listed = patterns if isinstance(patterns, Collection) else ()
    return [text for text in listed if isinstance(text, str)]


def matches(text: str, name: str) -> bool:
    """Whether a pattern of `targets` or `ignore` names it, or its regular expression does."""
    if not text.startswith("re:"):
        return text == name
    try:
        return re.match(text[3:], name) is not None
    except re.error:
        return False  # refused by `select_modules`, with a message


def _prunable_weight(fqn: str, module: nn.Module, parameter: str) -> nn.Parameter:
    """The parameter of that name of a module, after every check that keeps the later write from failing."""
    name = f"{fqn}.{parameter}".removeprefix(".")
    weight = module._parameters.get(parameter)
    if weight is None:
        computed = _computed_by(module, parameter)
        raise ValueError(f"{name}: expected a parameter, got a tensor computed by {computed}")
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


def _computed_by(module: nn.Module, parameter: str) -> str:
    if parametrize.is_parametrized(module, parameter):
        call = f"torch.nn.utils.parametrize.remove_parametrizations(module, {parameter!r})"
        return f"a parametrization (call {call} first)"
    if hasattr(module, f"{parameter}_mask"):
        return f"torch.nn.utils.prune (call torch.nn.utils.prune.remove(module, {parameter!r}) first)"
    return "the module (make it a parameter first)"


def memory_of(weight: Tensor) -> object:
    """Equal for two tensors that are the same memory read the same way."""
    pointer = weight.data_ptr() if weight.layout == torch.strided and not weight.is_meta else 0
    # Tensors without elements, data or a memory of their own.
    return (weight.device, pointer, weight.dtype, weight.shape, weight.stride()) if pointer else id(weight)


def _warn_of_other_owners(
    model: nn.Module, modules: Mapping[str, nn.Module], layers: Mapping[str, Layer], stacklevel: int
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
                # The caller of prune_ or calibrate.
                warnings.warn(message, UserWarning, stacklevel=stacklevel)
