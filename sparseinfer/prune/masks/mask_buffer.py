"""The buffer that a held mask is: bool, and yet something that can be averaged."""

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
    """A bool tensor that in arithmetic is the number 0 or 1. What is written to it is True where not 0.

    AveragedModel(use_buffers=True), and other averages over all buffers, subtract, scale and add what they
    find. Bools refuse that. Of the dtypes that do not, a float costs as much memory as a weight of half
    precision at the least and changes with `model.to(dtype)`, and an integer is cut off: 0.999·1 + 0.001·1 is
    0.99999994 and then 0. This one stays one byte, exact, and bool for all who read it. The average of masks
    that differ, as of a model that is pruned further meanwhile, keeps what any of them keeps: that is where
    the average of the weights is not zero.
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
    """The same memory as such a tensor."""
    return mask.as_subclass(MaskBuffer)


def as_tensor(mask: Tensor) -> Tensor:
    """The same memory as a plain tensor."""
    return mask.as_subclass(Tensor)


def plain_masks(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A hook of `state_dict`, which is to hold plain tensors: files are read where nobody knows the class."""
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
