"""Runs a module's forward as native networks while all that they were made of is as it was."""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils import _pytree as pytree

from sparseinfer.modules._tracing import is_observed
from sparseinfer.modules.regions.lower import Native, Part, lowered
from sparseinfer.modules.regions.trace import Refused, Value, recorded
from sparseinfer.ops import watched
from sparseinfer.ops.cpu.network import Step
from sparseinfer.ops.schema import in_channels_last

# What a call may be given besides its input; the course of a forward may depend on it.
_CONSTANTS = (type(None), bool, int, float, str)
# Of a layer, the calls that are recorded; other modules are followed into their own forward.
_LAYERS = ("torch.nn.modules.", "sparseinfer.modules.")
# How often a form of calls of a module that changes is captured anew, and of how many forms; every time costs
# some milliseconds.
_MOST_CAPTURES, _MOST_FORMS = 8, 16
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{kind}") for kind in _HOOKS)
# Of the calls, so many have to be in networks: for the others, joined layers are as fast or faster.
_LEAST_NATIVE = 0.75
_LEAST_CONVOLUTIONS = 2


def is_layer(module: nn.Module) -> bool:
    """Whether its calls are recorded as they are."""
    return type(module).__module__.startswith(_LAYERS)


class Captured:
    """A module's forward for images of so many channels, as networks and calls in between.

    Refused: its forward cannot be recorded, or little of it would be native.
    """

    def __init__(self, module: nn.Module, channels: int, call: _Call) -> None:
        found = recorded(module, channels, is_layer, call.with_input)
        self.parts: list[Part] = lowered(found)
        natives = [part for part in self.parts if isinstance(part, Native)]
        kept = len(self.parts) - len(natives)
        steps = [step for part in natives for step in part.network.steps]
        convolutions = sum(step.kind in ("conv", "depthwise") for step in steps)
        if convolutions < _LEAST_CONVOLUTIONS or kept > (1 - _LEAST_NATIVE) * len(found.calls):
            raise Refused("little of it would be native")
        self.layers = [(layer, part.computed.get(layer)) for part in natives for layer in part.layers]
        self._channels, self._leaves, self._structure = channels, found.leaves, found.structure
        self._values = len(found.calls) + 1
        self._unchanged = _Unchanged(found.modules)
        self._copied = [copied for part in natives for copied in part.copied]
        self._parameters = [p for m in found.modules for p in m._parameters.values() if p is not None]

    def holds(self) -> bool:
        """Whether modules and values are those that the networks were made of."""
        return self._unchanged.holds() and all(kept.holds(*held) for held, kept in self._copied)

    def takes(self, x: Tensor) -> bool:
        """Whether the networks return what the modules return for this x."""
        if type(x) is not Tensor or x.dtype != torch.float32 or not x.is_cpu or x.dim() != 4:
            return False
        if x.layout != torch.strided or x.shape[1] != self._channels or not x.numel() or in_channels_last(x):
            return False
        # Without gradients there is nothing that a dense layer's weight could be told.
        grad = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self._parameters))
        return not grad and not x.is_conj() and not x.is_neg()

    def run(self, x: Tensor) -> Any:
        """What the forward returns. ValueError: an image that some layer does not take."""
        values: list[Any] = [None] * self._values
        values[0] = x

        for part in self.parts:
            if isinstance(part, Native):
                results = part.network.run([values[number].contiguous() for number in part.inputs])
                for number, place in part.outputs.items():
                    values[number] = results[place]
            else:
                number, call = part
                values[number] = call.of(values)
        leaves = [values[leaf.number] if isinstance(leaf, Value) else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._structure)


class _Call:
    """Where the input of a call is among its arguments, and what the others are."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refused: not exactly one tensor, or other things than constants besides it."""
        named: list[tuple[Any, Any]] = [*enumerate(args), *kwargs.items()]
        tensors = [(name, arg) for name, arg in named if isinstance(arg, Tensor)]
        others = [(name, arg) for name, arg in named if not isinstance(arg, Tensor)]
        if len(tensors) != 1 or not all(type(arg) in _CONSTANTS for _, arg in others):
            raise Refused("it is called with other arguments")
        self._at: Any
        self.x: Any  # None where it is forgotten
        self._at, self.x = tensors[0]
        self._args, self._kwargs = list(args), dict(kwargs)
        self.key = (self._at, *((name, type(arg), arg) for name, arg in others))

    def with_input(self, x: Tensor) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = list(self._args), dict(self._kwargs)
        if isinstance(self._at, int):
            args[self._at] = x
        else:
            kwargs[self._at] = x
        return args, kwargs

    def forget_input(self) -> _Call:
        self._args, self._kwargs = self.with_input(None)  # type: ignore[arg-type]
        self.x = None
        return self


class Holder:
    """Keeps what was captured of a module, for each form of its calls. Copies and pickles are empty."""

    def __init__(self) -> None:
        self._captured: dict[Any, Captured | None] = {}
        self._captures: Counter[Any] = Counter()

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """module's forward(*args, **kwargs), natively where that returns the same."""
        try:
            call = _Call(args, kwargs)
        except Refused:
            return forward(module, *args, **kwargs)
        x = call.x
        if module.training or watched(x) or is_observed() or any(_GLOBAL_HOOKS):
            return forward(module, *args, **kwargs)
        captured = self._captured.get(_form(call, x))
        if captured is None or not captured.holds():
            captured = self._again(module, x, call)
        if captured is None or not captured.takes(x):
            return forward(module, *args, **kwargs)
        try:
            return captured.run(x)
        except ValueError:
            # The modules themselves say what is wrong with it.
            return forward(module, *args, **kwargs)

    def capture(self, module: nn.Module, channels: int) -> Captured:
        """What is captured for calls with the input alone. Refused: nothing can be."""
        call = _Call((torch.empty(0, dtype=torch.float32, device="cpu"),), {}).forget_input()
        captured = Captured(module, channels, call)
        self._captured[call.key, channels] = captured
        return captured

    def layers(self) -> list[tuple[nn.Module, Step | None]]:
        """Those that networks compute, of the calls that were captured, with the steps that multiply."""
        captured = [one for one in self._captured.values() if one is not None]
        return [layer for one in captured for layer in one.layers]

    def _again(self, module: nn.Module, x: Tensor, call: _Call) -> Captured | None:
        # A form of calls that was refused, too: what it depended on may have changed.
        form = _form(call, x)
        if x.dim() != 4 or self._captures[form] >= _MOST_CAPTURES or len(self._captures) > _MOST_FORMS:
            return None
        self._captures[form] += 1
        try:
            captured = Captured(module, x.shape[1], call.forget_input())
        except Refused:
            return None
        self._captured[form] = captured
        return captured

    def __deepcopy__(self, memo: dict[int, Any]) -> Holder:
        return Holder()

    def __reduce__(self) -> Any:
        return Holder, ()


def _form(call: _Call, x: Tensor) -> Any:
    """Calls for which the same is captured: with such arguments, and so many channels."""
    return call.key, x.shape[1] if x.dim() == 4 else 0


class _Unchanged:
    """Whether modules have the attributes, layers, tensors and hooks that they had."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._types = [type(module) for module in modules]
        # Dicts are compared with copies of them: identical values are found equal without a look into them.
        self._dicts = [vars(module) for module in modules]
        self._dicts += [module._modules for module in modules]
        self._dicts += [vars(other) for other in _objects_of(modules)]
        self._copies = [dict(one) for one in self._dicts]
        self._held = [one for module in modules for one in (module._parameters, module._buffers)]
        self._tensors = [t for one in self._held for t in one.values()]
        self._hooks = [
            hooks for module in modules for name in _HOOKS if (hooks := getattr(module, name)) is not None
        ]

    def holds(self) -> bool:
        try:
            same = self._dicts == self._copies
        except Exception:  # of an attribute that cannot be compared
            return False
        tensors = [t for one in self._held for t in one.values()]
        return (
            same
            and len(tensors) == len(self._tensors)
            and all(map(operator.is_, tensors, self._tensors))
            and not any(self._hooks)
            and [*map(type, self._modules)] == self._types
        )


def _objects_of(modules: Sequence[nn.Module]) -> list[Any]:
    """Objects in attributes, such as configurations, which a forward may look at."""
    found: dict[int, Any] = {}
    for module in modules:
        for value in vars(module).values():
            # Every module has a dozen OrderedDicts for hooks, whose attributes nobody uses.
            plain = not isinstance(value, (nn.Module, Tensor, type, Holder)) and not callable(value)
            if plain and type(value) is not OrderedDict and hasattr(value, "__dict__"):
                found[id(value)] = value
    return list(found.values())
