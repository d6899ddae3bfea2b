"""What the modules share: what composites ask of their parts, and what none of them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from sparseinfer.ops.transforms import refuse_gradients

__all__ = [
    "checked_part",
    "constant",
    "dense_bias",
    "dense_linear",
    "dense_weight",
    "destination",
    "dtype_of",
    "features",
    "is_observed",
    "refuse_gradients",
    "unseen",
]


def checked_part(name: str, part: object, n: int, k: int) -> nn.Module:
    """part, if it is a module like nn.Linear(k, n): TypeError or ValueError otherwise."""
    if not isinstance(part, nn.Module) or not hasattr(part, "weight"):
        raise TypeError(f"{name}: expected a module like nn.Linear, got {type(part).__name__}")
    shape = features(name, part)
    if shape != (n, k):
        raise ValueError(f"{name}: expected out_features, in_features = {(n, k)}, got {shape}")
    activation = getattr(part, "activation", "none")
    if activation != "none":
        raise ValueError(f"{name}: expected no activation, got {activation!r} (it is applied elsewhere)")
    return part


def features(name: str, part: object) -> tuple[int, int]:
    """out_features and in_features of a module that has them; TypeError otherwise."""
    n, k = getattr(part, "out_features", None), getattr(part, "in_features", None)
    if not isinstance(n, int) or not isinstance(k, int):
        raise TypeError(f"{name}: expected a module like nn.Linear, got {type(part).__name__}")
    return n, k


def dense_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """nn.Linear with this weight [n, k] and bias [n], not copies of them."""
    # Built tiny and without data: nothing to initialise, no random numbers drawn, no warning if k = 0.
    linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach())
    return linear


def dtype_of(part: nn.Module) -> torch.dtype:
    """Of the part's inputs and results."""
    own = getattr(part, "dtype", None)
    if isinstance(own, torch.dtype):
        return own
    weight = part.weight
    assert isinstance(weight, Tensor)
    return weight.dtype


def dense_weight(part: nn.Module) -> Tensor:
    """A copy of the part's dense weight [n, k]."""
    own: Any = getattr(part, "dense_matrix", None)
    weight: Any = part.weight if own is None else own()
    if own is None:
        weight = weight.detach().clone()
    assert isinstance(weight, Tensor)
    return weight


def dense_bias(part: nn.Module) -> Tensor | None:
    """A copy of the part's bias [n]."""
    bias = getattr(part, "bias", None)
    return bias.detach().clone() if isinstance(bias, Tensor) else None


def destination(module: nn.Module, dtype: torch.dtype, fn: Callable[[Tensor], Tensor]) -> torch.device:
    """Where fn, as nn.Module._apply gets it, moves tensors. TypeError: to another dtype or kind of device."""
    probe = fn(torch.zeros(1, dtype=dtype, device="cpu"))
    if probe.dtype != dtype or probe.device.type not in ("cpu", "cuda"):
        raise TypeError(
            f"{type(module).__name__}: expected to stay {dtype} on cpu or cuda, got a move to "
            f"{probe.dtype} on {probe.device} (move the dense model, then convert it again)"
        )
    return probe.device


def is_observed() -> bool:
    """Whether torch looks on at what is computed, and would lose sight of writes into memory.

    That is: torch.compile, torch.export, jit.trace, the transforms of torch.func, and forward mode.
    """
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


@contextmanager
def unseen() -> Iterator[None]:
    """What is computed here is a constant to jit.trace and to the transforms of torch.func."""
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
