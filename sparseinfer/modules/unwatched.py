"""Checks whether a module's call does more than its class's forward: hooks, or a replaced forward."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module


def is_unwatched(module: nn.Module) -> bool:
    """Whether a call runs only the forward of the module's class: no hooks, no replaced forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
    )
