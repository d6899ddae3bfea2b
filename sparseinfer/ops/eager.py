"""Calls the operators from eager Python without torch's dispatcher, where nothing in it would act.

Going from Python through the dispatcher and back costs 3.5 us, half the time of a small layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparseinfer.ops.backend import backend_of
from sparseinfer.ops.geometry import Geometry
from sparseinfer.ops.transforms import refuse_gradients

_is_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled

# What may want to see operators: modes, functorch, tracing, profilers, autocast. All are asked by functions
# of torch that are not public; in a torch without one of them, calls always take the long way.
_WATCHERS = (
    "_len_torch_dispatch_stack",
    "_len_torch_function_stack",
    "_functorch.peek_interpreter_stack",
    "_is_tracing",
    "_autograd._profiler_enabled",
    "_is_any_autocast_enabled",
)


def _watcher(name: str) -> Callable[[], object] | None:
    at: object = torch._C
    for part in name.split("."):
        at = getattr(at, part, None)
    return at if callable(at) else None


_ALL = [watcher for watcher in map(_watcher, _WATCHERS) if watcher is not None]
_COMPLETE = len(_ALL) == len(_WATCHERS)


def watched(x: Tensor) -> bool:
    """Whether a part of torch has to see operations on x, so that the dispatcher must not be skipped."""
    return (
        not _COMPLETE
        or _is_compiling()
        or type(x) is not Tensor
        or bool(_ALL[0]() or _ALL[1]() or _ALL[2]() or _ALL[3]() or _ALL[4]() or _ALL[5]())
        or forward_ad._current_level >= 0
    )


def eager_linear(overload: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A faster function with the results of `overload`, the linear operator.

    Arguments are listed one by one because passing `*args` takes twice as long.
    """
    if not _COMPLETE:
        return overload
    dispatch_modes, function_modes, transforms, tracing, profiling, autocast = _ALL

    def operator(
        x: Tensor, packings: list[Tensor], bias: Tensor | None, n: int, plan: str, activation: str
    ) -> Tensor:
        """activation(x · Wᵀ + bias): y [..., n] of x [..., k], in x's dtype; without gradients.

        packings    of W [n, k], uint8, one for each layout that the plan names (`ops.pack`)
        bias        [n] or None
        plan        the kernel for each range of token counts (`ops.format_plan`)
        activation  "none" or another of `ops.names`

        RuntimeError: x or bias requires a gradient. ValueError, TypeError: an argument that does not fit.
        """
        if _grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            refuse_gradients(x=x, bias=bias)
        if (
            _is_compiling()
            or type(x) is not Tensor
            or dispatch_modes()
            or function_modes()
            or transforms()
            or tracing()
            or profiling()
            or autocast()
            or forward_ad._current_level >= 0
            or (backend := backend_of(x)) is None
        ):
            return overload(x, packings, bias, n, plan, activation)
        return backend.linear.run(x, packings, bias, n, plan, activation)

    return operator


def eager_conv(overload: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for the convolution; geometry, plan and activation are keyword-only."""

    def operator(
        x: Tensor,
        packings: list[Tensor],
        bias: Tensor | None,
        n: int,
        *,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        plan: str,
        activation: str,
    ) -> Tensor:
        """activation(conv2d(x, W) + bias): y [batch, n, h', w'] of x [batch, channels, h, w], in x's dtype.

        packings    for each group one of its W [n / groups, channels / groups · kernel size], uint8
        kernel_size, stride, padding, dilation   (height, width) each

        bias, plan, activation and errors as of `linear`; tokens are pixels of y.
        """
        geometry = Geometry(kernel_size, stride, padding, dilation, groups)
        if _grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            refuse_gradients(x=x, bias=bias)
        if watched(x) or (backend := backend_of(x)) is None:
            return overload(x, packings, bias, n, *geometry, plan, activation)
        return backend.conv.run(x, packings, bias, n, geometry, plan, activation)

    return operator
