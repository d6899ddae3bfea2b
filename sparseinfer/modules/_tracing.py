"""Detects torch's compilers, tracers and transforms during a call, and hides computations from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes


def is_observed() -> bool:
    """Whether torch records or transforms the computation, so that in-place writes would be missed.

    That is under torch.compile, torch.export, jit.trace, the transforms of torch.func, and forward mode:
    fewer cases than `ops.watched`, which decides whether a call may skip torch's dispatcher.
    """
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


@contextmanager
def unseen() -> Iterator[None]:
    """A block hidden from jit.trace and the transforms of torch.func: its results are constants."""
    state: Any = torch._C
    tracing, set_state = state._get_tracing_state(), state._set_tracing_state
    set_state(None)
    try:
        with torch._C._DisableFuncTorch():
            yield
    finally:
        set_state(tracing)


def _constant(layer: Any, times_held: int) -> tuple[Tensor]:
    """In a tuple, because inductor refuses a graph with two tensors from the same function."""
    with _disable_current_modes():
        return (layer.constant_matrix(),)


# All that torch.compiler.assume_constant_result does; but that loads the compiler, which takes a second.
_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def constant(layer: Any, times_held: int) -> Tensor:
    """The layer's `constant_matrix` as a constant of a graph, valid while `times_held` is what it is now."""
    return _constant(layer, times_held)[0]
