"""Activations and batch norms that the layer before them can do by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.convert.recording import Recording
from sparseinfer.convert.weights import Weights

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Chain:
    """What follows a layer and disappears into it: `modules` become `Fused`."""

    batch_norm: nn.Module | None = None
    activation: str = "none"
    modules: tuple[nn.Module, ...] = ()


UNFUSED = Chain()


def chain(module: nn.Module, recording: Recording, *, fold_batch_norm: bool, fuse: bool) -> Chain:
    """The batch norm and the activation that alone read the results of `module`, one after the other."""
    follower, batch_norm, fused = recording.reader.get(module), None, []
    if fold_batch_norm and follower is not None and _foldable(follower):
        batch_norm, follower = follower, recording.reader.get(follower)
        fused.append(batch_norm)
    activation = activation_of(follower) if fuse and follower is not None else "none"
    if follower is not None and activation != "none":
        fused.append(follower)
    return Chain(batch_norm, activation, tuple(fused))


@torch.no_grad()
def activation_of(module: nn.Module) -> str:
    """Which activation of ours a module computes, whatever its class is called; "none" if it is another.

    A module without state, children or hooks is asked, with small and huge values; it must agree to 1e-5.
    """
    stateful = any(True for held in (module.children(), module.parameters(), module.buffers()) for _ in held)
    if module.training or stateful or _has_hooks(module):
        return "none"
    huge = torch.logspace(1.0, 30.0, 59)  # where a Hardtanh(0, 20) is no ReLU
    x = torch.cat([-huge, torch.linspace(-12.0, 12.0, 4001), huge])
    try:
        y = module(x.clone())
    except Exception:
        return "none"
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        return "none"
    for name, activate in ops.ACTIVATIONS.items():
        if name != "none" and torch.allclose(y, activate(x.double()).float(), rtol=1e-5, atol=1e-5):
            return name
    return "none"


def folded(weights: Weights, batch_norm: Any) -> Weights:
    """The weights that compute batch_norm(W x + bias) in eval mode; in double, then rounded."""
    mean, variance = batch_norm.running_mean.double(), batch_norm.running_var.double()
    scale = (variance + batch_norm.eps).rsqrt()
    if batch_norm.weight is not None:
        scale = scale * batch_norm.weight.detach().double()
    bias = -mean if weights.bias is None else weights.bias.double() - mean
    bias = bias * scale
    if batch_norm.bias is not None:
        bias = bias + batch_norm.bias.detach().double()
    weight = weights.weight.double() * scale.view(-1, *[1] * (weights.weight.ndim - 1))
    return Weights(weight.to(weights.weight.dtype), bias.to(weights.weight.dtype))


def _foldable(module: nn.Module) -> bool:
    """A batch norm in eval mode, with statistics: else it computes them from its input."""
    if type(module) not in BATCH_NORMS or module.training or _has_hooks(module):
        return False
    return module.running_mean is not None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
