"""The operator called from plain Python, past torch's dispatcher wherever nothing in it would take part.

The way from Python through the dispatcher and back into Python costs 3.5 us, half the time of a small layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_is_compiling = torch.compiler.is_compiling

# What may want to see operators: modes, functorch, tracing, profilers. All are asked by functions of torch
# that are not public; in a torch without one of them, calls always take the long way.
_WATCHERS = (
    "_len_torch_dispatch_stack",
    "_len_torch_function_stack",
    "_functorch.peek_interpreter_stack",
    "_get_tracing_state",
    "_autograd._profiler_enabled",
)


def _found(name: str) -> Callable[[], object] | None:
    at: object = torch._C
    for part in name.split("."):
        at = getattr(at, part, None)
    return at if callable(at) else None


def eager(overload: Callable[..., Tensor], run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that gives what `overload`, an operator, gives, sooner: `run` is what it does on the CPU."""
    found = [watcher for watcher in map(_found, _WATCHERS) if watcher is not None]
    if len(found) < len(_WATCHERS):
        return overload
    dispatch_modes, function_modes, transforms, tracing, profiling = found

    def operator(x: Tensor, *args: Any, **named: Any) -> Tensor:
        if (
            _is_compiling()
            or type(x) is not Tensor
            or dispatch_modes()
            or function_modes()
            or transforms()
            or tracing()
            or profiling()
        ):
            return overload(x, *args, **named)
        return run(x, *args, **named)

    return operator
