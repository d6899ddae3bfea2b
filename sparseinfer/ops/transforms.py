"""Rules of the operators for torch's transforms: derivatives, vmap, autocast.

The rules call the operators again one level lower in torch.func, so that transforms can be nested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparseinfer.ops.names import ACTIVATIONS
from sparseinfer.ops.schema import library

Operator = Callable[..., Tensor]

_AUTOCAST = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}


def refuse_gradients(**inputs: Tensor | None) -> None:
    """Raises RuntimeError that names the first input that requires a gradient."""
    if torch.is_grad_enabled():
        for name, tensor in inputs.items():
            if tensor is not None and _wants_gradient(tensor):
                raise RuntimeError(
                    f"{name}: expected an input without gradients, got requires_grad=True "
                    "(sparse layers are for inference: run under torch.no_grad() or torch.inference_mode())"
                )


def _wants_gradient(t: Tensor) -> bool:
    """Whether t requires a gradient, or a tensor does that transforms of torch.func have wrapped in it."""
    if t.requires_grad:
        return True
    while not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
        if t.requires_grad:
            return True
    return False


def in_forward_mode(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors carries a tangent of torch.func.jvp or torch.autograd.forward_ad."""
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def register() -> None:
    """Registers the rules of both operators, sparseinfer::name(x, packings, bias, ..., activation)."""
    _register("linear", lambda bias: bias, lambda op, x, *rest: op(x, *rest))
    _register("conv", lambda bias: bias[:, None, None], _more_images)


def _register(name: str, with_bias: Callable[[Tensor], Tensor], vmapped: Operator) -> None:
    """with_bias: a bias [n] as it is added to y. vmapped: (op, x, ...) -> y with one more dimension each."""
    op: Operator = getattr(torch.ops.sparseinfer, name).default
    library.impl(name, _differentiable(op, with_bias), "Autograd")
    for device, key in _AUTOCAST.items():
        library.impl(name, _autocast(op, device, torch._C.DispatchKeySet(key)), key.name)
    torch.library.register_vmap(f"sparseinfer::{name}", _batched(op, vmapped), lib=library)


def _more_images(op: Operator, x: Tensor, *rest: Any) -> Tensor:
    """y [v, b, n, h', w'] for x [v, b, c, h, w], as v * b images."""
    y = op(x.flatten(0, 1), *rest)
    return y.unflatten(0, x.shape[:2])


def _differentiable(op: Operator, with_bias: Callable[[Tensor], Tensor]) -> Operator:
    """Derivatives in forward mode, which are products of the same kind; no gradients, which are not."""

    def kernel(x: Tensor, packings: list[Tensor], bias: Tensor | None, *rest: Any) -> Tensor:
        if torch.is_grad_enabled():
            refuse_gradients(x=x, bias=bias)
        if forward_ad._current_level >= 0 and in_forward_mode(x, bias):
            plain = (*rest[:-1], "none")
            x, dx = forward_ad.unpack_dual(x)
            bias, db = (None, None) if bias is None else forward_ad.unpack_dual(bias)
            y = op(x, packings, bias, *plain)
            dy = torch.zeros_like(y) if dx is None else op(dx, packings, None, *plain)
            if db is not None:
                dy = dy + with_bias(db).to(dy.dtype)
            return ACTIVATIONS[rest[-1]](forward_ad.make_dual(y, dy))
        with torch._C._AutoDispatchBelowAutograd():
            return op(x, packings, bias, *rest)

    return kernel


def _autocast(op: Operator, device: str, keys: torch._C.DispatchKeySet) -> Operator:
    """As F.linear and F.conv2d: x is rounded, unless it is float64, and so is the result."""

    def kernel(x: Tensor, packings: list[Tensor], bias: Tensor | None, *rest: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if x.is_floating_point() and x.dtype != torch.float64:
                x = x.to(torch.get_autocast_dtype(device))
            return op(x, packings, bias, *rest)

    return kernel


def _batched(op: Operator, vmapped: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    def rule(
        info: Any, in_dims: Any, x: Tensor, packings: list[Tensor], bias: Tensor | None, *rest: Any
    ) -> Any:
        x_dim, packing_dims, bias_dim = in_dims[:3]
        if bias_dim is None and all(dim is None for dim in packing_dims or ()):
            return vmapped(op, x.movedim(x_dim, 0), packings, bias, *rest), 0
        # Another layer for each x: nothing to gain by doing them together.
        parts = []
        for i in range(info.batch_size):
            layer = [_at(packed, dim, i) for packed, dim in zip(packings, packing_dims, strict=True)]
            layer_bias = None if bias is None else _at(bias, bias_dim, i)
            parts.append(op(_at(x, x_dim, i), layer, layer_bias, *rest))
        return torch.stack(parts), 0

    return rule


def _at(t: Tensor, dim: int | None, index: int) -> Tensor:
    return t if dim is None else t.select(dim, index).contiguous()
