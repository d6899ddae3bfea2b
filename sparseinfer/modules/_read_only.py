"""A read-only tensor: the dense copy of a weight that a layer holds in another form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

_HINT = (
    "densify_ the model first, change the dense layer, convert again; or put an adapter beside the layer. "
    "To have a tensor of your own, .clone() this one"
)
# Methods named like those that write, which do not write.
_HARMLESS = frozenset({"requires_grad_", "detach_", "share_memory_"})
_ARITHMETIC = ("add", "sub", "mul", "matmul", "div", "truediv", "floordiv", "mod", "pow")
_BITWISE = ("lshift", "rshift", "and", "or", "xor")
_OPERATORS = frozenset(f"__i{name}__" for name in (*_ARITHMETIC, *_BITWISE))


class ReadOnlyTensor(Tensor):
    """A tensor that torch's functions can read but not write; the same holds for its views.

    A write would be lost, because the layer holds its weight in another form. Results of functions, copies
    and pickled tensors are plain ones.
    """

    @staticmethod
    def of(t: Tensor) -> Tensor:
        """t as read-only, sharing its memory. Under torch.compile, torch.export and jit.trace: t itself."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return t
        return t.as_subclass(ReadOnlyTensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(t, cls) for t in _tensors(_written(func, args, kwargs))):
            refuse_write("weight")
        read_only: list[Tensor] = [t for t in _tensors((*args, *kwargs.values())) if isinstance(t, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            if func in (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__):
                return _elsewhere(func, args, kwargs)
            if func is Tensor.__iter__:
                func = Tensor.unbind
                return iter(_read_only(func(*args), read_only))
            before = [_version(t) for t in read_only]
            plain = any(not issubclass(cls, kind) for kind in types)
            if plain:  # somebody else's tensors take part: what they do is theirs to say
                args, kwargs = _plain(args), _plain(kwargs)
        if plain:
            result = func(*args, **kwargs)
        else:
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if before != [_version(t) for t in read_only]:
                refuse_write("weight")
            return _read_only(result, read_only)

    def set_(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to write: the one writing method that bypasses __torch_function__."""
        refuse_write("weight")

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Parameter(t) and nn.Buffer(t) mark what t.detach() gave, and that is a tensor of its own then.
        if name == "_is_param":
            self.__class__ = nn.Parameter  # type: ignore[assignment]
        elif name == "_is_buffer":
            self.__class__ = Tensor  # type: ignore[assignment]
        object.__setattr__(self, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = memo.setdefault(id(self), self.clone())
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)


def refuse_write(name: str) -> NoReturn:
    raise RuntimeError(f"{name}: expected to be read only, got a write, which would be lost ({_HINT})")


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a function writes to, as its name and arguments say: in inference mode nothing else does."""
    name, first = getattr(func, "__name__", ""), [*args, *kwargs.values()][:1]
    if name == "__set__":
        of_grad = func.__self__ is Tensor.grad
        return first if func.__self__ is Tensor.data or (of_grad and args[1] is not None) else []
    by_name = name.endswith("_") and not name.endswith("__") and name not in _HARMLESS
    if by_name or name in _OPERATORS or name == "__setitem__" or kwargs.get("inplace"):
        return first
    return [kwargs.get("out")]


def _elsewhere(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """For other libraries, which torch does not see write: an array that refuses it, or a copy."""
    if func is Tensor.__dlpack__:
        return func(args[0].as_subclass(Tensor).clone(), *args[1:], **kwargs)
    array = func(*args, **kwargs)
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
    return array


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those that a function of torch is given, by themselves or in lists."""
    for item in value:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list)):
            yield from _tensors(item)


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _plain(value: Any) -> Any:
    if isinstance(value, ReadOnlyTensor):
        return value.as_subclass(Tensor)
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return {k: _plain(v) for k, v in value.items()} if type(value) is dict else value


def _read_only(value: Any, sources: list[Tensor]) -> Any:
    """Tensors in a result as read-only ones, where they share memory with one of `sources`."""
    if type(value) in (tuple, list):
        return type(value)(_read_only(item, sources) for item in value)
    if not isinstance(value, Tensor) or isinstance(value, ReadOnlyTensor):
        return value
    shares = any(_storage(value) == _storage(t) for t in sources) and _storage(value) is not None
    return value.as_subclass(ReadOnlyTensor) if shares else value


def _storage(t: Tensor) -> int | None:
    """Where the memory begins that t is a view of; None: it has none."""
    try:
        return t.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # sparse tensors, and those of torch.func
        return None
