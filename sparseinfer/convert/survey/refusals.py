"""Finds modules that convert must not replace, whatever their weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

from sparseinfer.prune.masks import HeldMask


def require_inference(modules: Mapping[str, nn.Module]) -> None:
    """ValueError that names the first parameter without data, or with a gradient training is about to use."""
    for fqn, module in modules.items():
        for name, parameter in module.named_parameters(prefix=fqn):
            if is_lazy(parameter):
                hint = "run the model once first"
                raise ValueError(f"{name}: expected an initialised parameter, got a lazy one ({hint})")
            if parameter.is_meta:
                hint = "load the model first"
                raise ValueError(f"{name}: expected a parameter with data, got a meta tensor ({hint})")
            if module.training and parameter.grad is not None:
                hint = "finish training, then call model.eval()"
                raise ValueError(f"{name}: expected no gradient, got one in training mode ({hint})")


def refusals(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """fqn -> reason, for the modules that cannot be replaced whatever their weights."""
    owners = _owners(model)
    reasons = {fqn: _refusal(module) or _shared(module, fqn, owners) for fqn, module in modules.items()}
    return {fqn: reason for fqn, reason in reasons.items() if reason}


def _refusal(module: nn.Module) -> str | None:
    if "forward" in vars(module):
        return "its forward has been replaced"
    if _has_hooks(module):
        return "it has hooks that a sparse layer would lose"
    return None


def _has_hooks(module: nn.Module) -> bool:
    # Those that keep pruned weights at zero may go: `read` takes the weight as they would leave it.
    pruning = (prune.BasePruningMethod, HeldMask)
    foreign = [hook for hook in module._forward_pre_hooks.values() if not isinstance(hook, pruning)]
    return any((foreign, module._forward_hooks, module._backward_hooks, module._backward_pre_hooks))


def _shared(module: nn.Module, fqn: str, owners: Mapping[object, set[str]]) -> str | None:
    inside = {f"{fqn}.{name}".strip(".") for name, _ in module.named_modules()}
    for name, parameter in module.named_parameters():
        if others := owners[_memory(parameter)] - inside:
            return f"its {name} is shared with {', '.join(sorted(map(repr, others)))}"
    return None


def _owners(model: nn.Module) -> dict[object, set[str]]:
    """Memory of a parameter -> fqns of the modules that hold it.

    A module under two names is one owner, under its first name; a parametrization belongs to its module.
    """
    owners: defaultdict[object, set[str]] = defaultdict(set)
    for fqn, module in model.named_modules():
        owner = f".{fqn}".split(".parametrizations.")[0][1:]
        for parameter in module.parameters(recurse=False):
            owners[_memory(parameter)].add(owner)
    return owners


def _memory(t: Tensor) -> object:
    real = t.device.type in ("cpu", "cuda")
    plain = type(t) is nn.Parameter and t.layout == torch.strided and real and t.numel()
    return t.data_ptr() if plain else id(t)
