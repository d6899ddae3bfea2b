"""Records which layers and functions a module's forward calls, for any input, without changing the module.

The forward of the module and of its children runs on stand-ins: shallow copies of the modules, whose layers
record their calls, and values without data that record torch's functions. Nothing is patched, so other
threads may run the same model meanwhile. A forward whose course depends on values or sizes, or that computes
with tensors besides its input, is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sparseinfer.modules.activations import activation_name
from sparseinfer.modules.unwatched import is_unwatched

# Containers, whose own forward, if any, is followed.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# What a stand-in may be asked without being computed.
_KNOWN = {
    Tensor.dim: 4,
    Tensor.ndimension: 4,
    Tensor.ndim.__get__: 4,  # type: ignore[attr-defined]
    Tensor.is_floating_point: True,
    Tensor.is_cuda.__get__: False,  # type: ignore[attr-defined]
    Tensor.is_sparse.__get__: False,  # type: ignore[attr-defined]
    Tensor.dtype.__get__: torch.float32,  # type: ignore[attr-defined]
    Tensor.requires_grad.__get__: False,  # type: ignore[attr-defined]
    Tensor.layout.__get__: torch.strided,  # type: ignore[attr-defined]
}


class Refused(Exception):
    """Why a module cannot be recorded."""


class Value(Tensor):
    """A tensor without data, that stands for the result of a call."""

    number: int

    @staticmethod
    def numbered(number: int) -> Value:
        with torch._C.DisableTorchFunction():
            value: Value = Tensor._make_subclass(Value, torch.empty(0, dtype=torch.float32, device="meta"))
        value.number = number
        return value


class _Sizes:
    """The shape of the input: all that is known of it is the number of channels."""

    def __init__(self, channels: int) -> None:
        self._channels = channels

    def __getitem__(self, i: Any) -> int:
        if i in (1, -3):
            return self._channels
        raise Refused("its forward looks at the size of its input")

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        raise Refused("its forward looks at the size of its input")


@dataclass(frozen=True)
class Call:
    """A call of a layer of the model or a function of torch; arguments may be or hold values."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def reads(self) -> list[int]:
        """Numbers of the values, each as often as it is used."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf.number for leaf in leaves if isinstance(leaf, Value)]

    @functools.cached_property
    def _flat(self) -> tuple[list[Any], Any]:
        return pytree.tree_flatten((self.args, self.kwargs))

    def of(self, values: Sequence[Any]) -> Any:
        """The result, with these values in the place of those that stand for them."""
        leaves, structure = self._flat
        given = [values[leaf.number] if isinstance(leaf, Value) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(given, structure)
        return self.function(*args, **kwargs)


@dataclass
class Recorded:
    """The calls in order; value 0 is the input, and value i the result of call i - 1.

    result    what the forward returns, with values in it, as a list of leaves and a structure
    modules   all that were looked at
    """

    calls: list[Call] = field(default_factory=list)
    leaves: Sequence[Any] = ()
    structure: Any = None
    modules: list[nn.Module] = field(default_factory=list)


def recorded(
    module: nn.Module,
    channels: int,
    leaves: Callable[[nn.Module], bool],
    arguments: Callable[[Tensor], tuple[Sequence[Any], dict[str, Any]]],
) -> Recorded:
    """The calls of module(*args, **kwargs), which are `arguments(x)`, for any x [b, channels, h, w].

    Layers that are `leaves` are not looked into. Refused: see above.
    """
    recorder = _Recorder(channels, leaves)
    twin = recorder.stand_in(module)
    if isinstance(twin, _Layer):
        raise Refused("it is a layer")
    try:
        with recorder:
            args, kwargs = arguments(Value.numbered(0))
            result = type(twin).forward(twin, *args, **kwargs)
    except Refused:
        raise
    except Exception as error:  # whatever a forward says to values without data
        raise Refused(f"its forward cannot be followed ({type(error).__name__}: {error})") from error
    recorder.check_unchanged()
    found = recorder.recorded
    found.leaves, found.structure = pytree.tree_flatten(result)
    for leaf in found.leaves:
        if not isinstance(leaf, (Value, int, float, str, type(None))) or type(leaf) is Tensor:
            raise Refused(f"it returns {type(leaf).__name__}")
    return found


class _Layer(nn.Module):
    """Stands for a layer: records its calls."""

    def __init__(self, layer: nn.Module, recorder: _Recorder) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "recorder", recorder)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        recorder: _Recorder = self.__dict__["recorder"]
        return recorder.record(self.__dict__["layer"], args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # A forward may read the layer's attributes, of which a sparse one has fewer tensors.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)


class _Recorder(TorchFunctionMode):
    def __init__(self, channels: int, leaves: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.recorded = Recorded()
        self._sizes = _Sizes(channels)
        self._leaves = leaves
        self._twins: dict[nn.Module, nn.Module] = {}
        self._before: list[tuple[nn.Module, dict[str, Any]]] = []

    def stand_in(self, module: nn.Module) -> nn.Module:
        """The module without its layers; its own attributes are shared."""
        if module in self._twins:
            return self._twins[module]
        plain = not isinstance(module, _CONTAINERS)
        is_layer = plain and (self._leaves(module) or activation_name(module) != "none")
        looked_at = list(module.modules()) if is_layer else [module]
        self.recorded.modules.extend(looked_at)
        if not all(map(is_unwatched, looked_at)):
            raise Refused("a module in it has hooks")
        if is_layer:
            self._twins[module] = _Layer(module, self)
            return self._twins[module]
        kind: Any = type(module)
        twin = kind.__new__(kind)
        self._twins[module] = twin
        twin.__dict__.update(module.__dict__)
        children = {name: child and self.stand_in(child) for name, child in module._modules.items()}
        twin.__dict__["_modules"] = children
        self._before.append((twin, dict(twin.__dict__)))
        return twin

    def check_unchanged(self) -> None:
        """Refused: a forward wrote to its module."""
        for twin, before in self._before:
            now = twin.__dict__
            if now.keys() != before.keys() or any(now[name] is not before[name] for name in before):
                raise Refused("its forward changes its attributes")

    def record(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        call = Call(function, args, dict(kwargs))
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and not isinstance(leaf, Value):
                raise Refused("its forward computes with other tensors")
        if not call.reads():
            raise Refused("its forward calls a layer without its input")
        self.recorded.calls.append(call)
        return Value.numbered(len(self.recorded.calls))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
        if not values:
            raise Refused("its forward computes with other tensors")
        if func == Tensor.shape.__get__ or (func == Tensor.size and len(args) == 1):  # type: ignore[attr-defined]
            if values[0].number == 0:
                return self._sizes
            raise Refused("its forward looks at the size of a result")
        if func == Tensor.size and args[1:] in ((1,), (-3,)) and values[0].number == 0:
            return self._sizes[1]
        if func in _KNOWN and values[0].number == 0:
            return _KNOWN[func]
        if func not in FUNCTIONS:
            raise Refused(f"its forward uses {getattr(func, '__name__', func)}")
        return self.record(func, tuple(args), dict(kwargs or {}))


# Functions that may be in what is recorded. They look at no global state, and return one tensor.
FUNCTIONS = frozenset(
    {
        *(torch.relu, Tensor.relu, Tensor.relu_, torch.relu_, nn.functional.relu, nn.functional.relu_),
        *(nn.functional.silu, nn.functional.gelu, nn.functional.relu6, nn.functional.hardswish),
        nn.functional.hardsigmoid,
        *(Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, torch.add),
        *(
            torch.flatten,
            Tensor.flatten,
            torch.sigmoid,
            Tensor.sigmoid,
            torch.mul,
            Tensor.mul,
            Tensor.__mul__,
            Tensor.__rmul__,
        ),
        *(Tensor.mean, torch.mean, torch.cat, nn.functional.adaptive_avg_pool2d, nn.functional.max_pool2d),
        *(nn.functional.pad, Tensor.squeeze, torch.squeeze, Tensor.unsqueeze, torch.unsqueeze),
    }
)
