"""Exchange with torch.nn.utils.prune: masks that it holds become ours, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from sparseinfer.prune.masks import finalize_, hold_masks_, masks_of


def from_torch_prune_(model: nn.Module) -> nn.Module:
    """Masks of torch.nn.utils.prune on `weight` become masks that are held here; in place, returns the model.

    `weight_orig`, the same parameter, is `weight` again, with zeros where it is pruned: what it held there is
    lost. Optimizers go on. Masks on other parameters, such as `bias`, stay torch's.

    ValueError: a weight under torch.ao.pruning, whose masks are parametrizations.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for fqn, module in model.named_modules():
        if _is_under_ao_pruning(module):
            hint = "call squash_mask() of its sparsifier first"
            name = f"{fqn}.weight".removeprefix(".")
            raise ValueError(f"{name}: expected torch.nn.utils.prune, got torch.ao.pruning ({hint})")
    pruned = {fqn: module for fqn, module in model.named_modules() if _is_pruned(module)}
    masks = {fqn: module.weight_mask.bool() for fqn, module in pruned.items()}
    _check_shared(pruned, masks)
    for module in pruned.values():
        prune.remove(module, "weight")
    return hold_masks_(model, masks)


def to_torch_prune_(model: nn.Module) -> nn.Module:
    """Masks that are held here become masks of torch.nn.utils.prune; in place, returns the model.

    `weight`, the same parameter, becomes `weight_orig` beside the buffer `weight_mask` in the weight's dtype.
    """
    masks = {fqn: mask.clone() for fqn, mask in masks_of(model).items()}
    finalize_(model)
    for fqn, mask in masks.items():
        prune.custom_from_mask(model.get_submodule(fqn), "weight", mask)
    return model


def _is_pruned(module: nn.Module) -> bool:
    return any(
        isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == "weight"
        for hook in module._forward_pre_hooks.values()
    )


def _check_shared(modules: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> None:
    first: dict[int, str] = {}
    for fqn, module in modules.items():
        owner = first.setdefault(id(module.weight_orig), fqn)
        if not torch.equal(masks[owner], masks[fqn]):
            name = f"{fqn}.weight_mask".removeprefix(".")
            raise ValueError(f"{name}: expected the mask of {owner!r}, which shares its weight, got another")


def _is_under_ao_pruning(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    steps = module.get_submodule("parametrizations.weight").children()
    return any(type(step).__name__ == "FakeSparsity" for step in steps)
