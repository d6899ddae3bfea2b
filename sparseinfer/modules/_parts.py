"""What the modules share: what composites ask of their parts, and what none of them does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


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


def dense_weight(part: nn.Module) -> Tensor:
    """A copy of the part's dense weight [n, k]."""
    weight = part.weight
    assert isinstance(weight, Tensor)
    return weight.detach().clone()


def dense_bias(part: nn.Module) -> Tensor | None:
    """A copy of the part's bias [n]."""
    bias = getattr(part, "bias", None)
    return bias.detach().clone() if isinstance(bias, Tensor) else None


def refuse_gradients(**inputs: Tensor | None) -> None:
    """RuntimeError that names the first input whose gradient would be asked for."""
    if torch.is_grad_enabled():
        for name, tensor in inputs.items():
            if tensor is not None and tensor.requires_grad:
                raise RuntimeError(
                    f"{name}: expected an input without gradients, got requires_grad=True "
                    "(sparse layers are for inference: run under torch.no_grad() or torch.inference_mode())"
                )


def destination(module: nn.Module, dtype: torch.dtype, fn: Callable[[Tensor], Tensor]) -> torch.device:
    """Where fn, as nn.Module._apply gets it, moves tensors. TypeError: to another dtype or kind of device."""
    probe = fn(torch.zeros(1, dtype=dtype))
    if probe.dtype != dtype or probe.device.type not in ("cpu", "cuda"):
        raise TypeError(
            f"{type(module).__name__}: expected to stay {dtype} on cpu or cuda, got a move to "
            f"{probe.dtype} on {probe.device} (move the dense model, then convert it again)"
        )
    return probe.device
