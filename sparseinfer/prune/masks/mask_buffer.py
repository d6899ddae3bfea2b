"""MaskBuffer: the buffer type of masks, a bool tensor that supports averaging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_OPERATIONS = ("add", "sub", "mul", "div", "lerp", "addcmul", "addcdiv")
_IN_PLACE = frozenset(name for op in _OPERATIONS for name in (f"{op}_", f"_foreach_{op}_", f"__i{op}__")) | {
    "__itruediv__"
}
# What bools lack. They have sums, products and quotients.
_OUT_OF_PLACE = frozenset(
    {"sub", "subtract", "rsub", "__sub__", "__rsub__", "lerp", "addcmul", "addcdiv", "_foreach_sub"}
    | {"_foreach_lerp", "_foreach_addcmul", "_foreach_addcdiv"}
)


class MaskBuffer(Tensor):
    """A bool tensor that acts as 0 or 1 in arithmetic. Values written to it become True where not 0.

    AveragedModel(use_buffers=True), and other averages over all buffers, subtract, scale and add buffers,
    which bool tensors do not support. A float mask would take at least as much memory as a half-precision
    weight and change with `model.to(dtype)`; an integer mask would be truncated: 0.999·1 + 0.001·1 is
    0.99999994, hence 0. This type stays exact, bool, and one byte per weight. The average of different masks,
    as of a model that is pruned further during averaging, keeps what any of them keeps, which is where the
    average of the weights is not zero.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _OUT_OF_PLACE:
            return func(*_numbers(args), **_numbers(kwargs))
        if name in _IN_PLACE:
            numbers = _numbers(args)
            func(*numbers, **_numbers(kwargs))
            for target, number in zip(_listed(args[0]), _listed(numbers[0]), strict=True):
                if target is not number:
                    target.copy_(number)
            return args[0]
        return _only_bools(super().__torch_function__(func, types, args, kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskBuffer:
        return memo.setdefault(id(self), as_buffer(as_tensor(self).clone()))


def as_buffer(mask: Tensor) -> MaskBuffer:
    """The same memory as a MaskBuffer."""
    return mask.as_subclass(MaskBuffer)


def as_tensor(mask: Tensor) -> Tensor:
    """The same memory as a plain tensor."""
    return mask.as_subclass(Tensor)


def plain_masks(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A `state_dict` hook that stores plain tensors, so that files can be read without this class."""
    for name, buffer in module._buffers.items():
        if isinstance(buffer, MaskBuffer) and isinstance(state.get(prefix + name), MaskBuffer):
            state[prefix + name] = as_tensor(state[prefix + name])


def _numbers(value: Any) -> Any:
    """Bools as float32, copied, in any nesting; what else there is, as it is."""
    if isinstance(value, Tensor):
        return as_tensor(value).float() if value.dtype == torch.bool else value
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    return type(value)(map(_numbers, value)) if isinstance(value, (list, tuple)) else value


def _listed(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _only_bools(value: Any) -> Any:
    """What is no bool is no mask: a plain tensor."""
    if isinstance(value, MaskBuffer):
        return value if value.dtype == torch.bool else as_tensor(value)
    return type(value)(map(_only_bools, value)) if type(value) in (list, tuple) else value
