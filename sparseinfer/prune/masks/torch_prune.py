"""Converts masks from and to torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from sparseinfer.prune.checks import check_module
from sparseinfer.prune.layers.names import parameter_name
from sparseinfer.prune.masks.held import all_held_masks, held_masks
from sparseinfer.prune.masks.hold import hold_masks_


def from_torch_prune_(model: nn.Module) -> nn.Module:
    """Convert masks of torch.nn.utils.prune on weights to masks of sparseinfer; in place, returns the model.

    Weights are `weight` and every parameter of two or more dimensions, such as `in_proj_weight`.
    `weight_orig`, the same parameter, is `weight` again, with zeros where it is pruned: its values there are
    lost. Optimizers keep working. Masks on other parameters, such as `bias`, stay torch's.

    ValueError: a weight under torch.ao.pruning, whose masks are parametrizations.
    """
    check_module(model)
    for fqn, module in model.named_modules():
        if _is_under_ao_pruning(module):
            hint = "call squash_mask() of its sparsifier first"
            name = parameter_name(fqn, "weight")
            raise ValueError(f"{name}: expected torch.nn.utils.prune, got torch.ao.pruning ({hint})")
    pruned = {
        parameter_name(fqn, name): (module, name)
        for fqn, module in model.named_modules()
        for name in _pruned_weights(module)
    }
    masks = {key: getattr(module, f"{name}_mask").bool() for key, (module, name) in pruned.items()}
    _check_shared(pruned, masks)
    for module, name in pruned.values():
        prune.remove(module, name)
    return hold_masks_(model, masks)


def to_torch_prune_(model: nn.Module) -> nn.Module:
    """Convert masks of sparseinfer to masks of torch.nn.utils.prune; in place, returns the model.

    `weight`, the same parameter, becomes `weight_orig` beside the buffer `weight_mask` in the weight's dtype.
    """
    masks = [
        (module, held.name, held.mask.clone()) for module in model.modules() for held in held_masks(module)
    ]
    for held in all_held_masks(model):
        held.remove()
    for module, name, mask in masks:
        prune.custom_from_mask(module, name, mask)
    return model


def _pruned_weights(module: nn.Module) -> list[str]:
    """Names of the parameters that torch prunes: weights, whose masks can be held."""
    names = [
        hook._tensor_name
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
    return [name for name in names if name == "weight" or _original(module, name).dim() > 1]


def _original(module: nn.Module, name: str) -> Any:
    return getattr(module, f"{name}_orig")


def _check_shared(pruned: Mapping[str, tuple[nn.Module, str]], masks: Mapping[str, Tensor]) -> None:
    first: dict[int, str] = {}
    for key, (module, name) in pruned.items():
        owner = first.setdefault(id(_original(module, name)), key)
        if not torch.equal(masks[owner], masks[key]):
            whose = repr(owner.removesuffix(".weight"))
            got = f"expected the mask of {whose}, which shares its weight, got another"
            raise ValueError(f"{key}_mask: {got}")


def _is_under_ao_pruning(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    steps = module.get_submodule("parametrizations.weight").children()
    return any(type(step).__name__ == "FakeSparsity" for step in steps)
