"""`hold_masks_` attaches masks to a model; `masks_of` reads them from a model or its state_dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized

from sparseinfer.prune.checks import check_module
from sparseinfer.prune.layers.names import parameter_name, weight_key
from sparseinfer.prune.masks.held import ENDING, HeldMask, held_masks


def hold_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Keep the weights that each mask prunes at zero from now on; in place, returns the model.

    masks  name -> bool, True = kept: for a module's name in the shape of its `weight`, whatever its class;
           or for a parameter's full name, such as "attention.in_proj_weight"

    The weight stays an ordinary parameter. The mask becomes the buffer `weight_mask`, or that of the other
    parameter's name with `_mask` behind it: it is in `state_dict()`, and in every copy of the module.
    Gradients of pruned weights are set to zero before they are clipped or reduced. Every step of a torch
    optimizer, with any momentum or earlier state, and `load_state_dict` keep the zeros; other writes to the
    weight are corrected at the next forward of its module.

    A module that already has a mask gets the new one; weights that are kept again start at zero. If modules
    share a weight, the first one holds its mask. After an error the model is unchanged. TypeError or
    ValueError: a name that is no module and no parameter, a mask of another dtype or shape, a weight that is
    no initialised parameter, or two different masks for one weight.
    """
    check_module(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = {id(held.weight): (held.module, held.name) for m in modules.values() for held in held_masks(m)}
    chosen: dict[tuple[nn.Module, str], Tensor] = {}
    for fqn, mask in masks.items():
        module, name = _place(modules, fqn)
        weight = _maskable_weight(fqn, module, name)
        _check_mask(fqn, mask, weight)
        first = chosen.setdefault(owners.setdefault(id(weight), (module, name)), mask)
        if not torch.equal(first.to(mask.device), mask):
            raise ValueError(f"masks[{fqn!r}]: expected the mask of those who share its weight, got another")

    for (module, name), mask in chosen.items():
        held = next((held for held in held_masks(module) if held.name == name), None)
        if held is None:
            held = HeldMask(module, name)
            held.place(mask)
        else:
            held.mask.copy_(mask)
        held.enforce()
    return model


def masks_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of a model, bool, True = kept, sharing the buffers' memory. {} if it has none.

    By the name of the module, or of the parameter where that is not called `weight`: as `hold_masks_` takes
    them. Of a `state_dict` instead of a model: the masks that were saved in it, by this library or by
    torch.nn.utils.prune, for `hold_masks_` of the model that is to load it. ValueError for one of a model
    under torch.ao.pruning, which does not save its masks.
    """
    if isinstance(model, nn.Module):
        return {
            weight_key(fqn, held.name): held.mask
            for fqn, module in model.named_modules()
            for held in held_masks(module)
        }
    for key in model:
        if key.endswith("parametrizations.weight.original"):
            hint = "call squash_mask() of its sparsifier before saving"
            got = f"{key!r} of torch.ao.pruning, which does not save masks"
            raise ValueError(f"model: expected a state_dict with masks, got {got} ({hint})")
    masks = {}
    for key, mask in model.items():
        owner, _, name = key.removesuffix(ENDING).rpartition(".")
        if key.endswith(ENDING) and (name == "weight" or _is_mask_of_matrices(model, key, mask)):
            masks[weight_key(owner, name)] = mask.bool()
    return masks


def _is_mask_of_matrices(state: Mapping[str, Any], key: str, mask: object) -> bool:
    """Whether the state holds a weight of its name and shape; torch's masks of biases are left to torch."""
    name = key.removesuffix(ENDING)
    weight = state.get(name, state.get(f"{name}_orig"))
    if not isinstance(mask, Tensor) or not isinstance(weight, Tensor):
        return False
    return mask.shape == weight.shape and weight.dim() > 1


def _place(modules: Mapping[str, nn.Module], key: str) -> tuple[nn.Module, str]:
    """(module, name of its parameter) that a mask of this name is for."""
    if key in modules:
        return modules[key], "weight"
    owner, _, name = key.rpartition(".")
    if not isinstance(getattr(modules.get(owner), name, None), Tensor):
        raise ValueError(f"masks: expected names of the model's modules, got {key!r}")
    return modules[owner], name


def _maskable_weight(key: str, module: nn.Module, parameter: str) -> nn.Parameter:
    name = key if f".{key}".endswith(f".{parameter}") else parameter_name(key, "weight")
    weight = module._parameters.get(parameter)
    if weight is None:
        got = f"a {type(module).__name__} without one"
        if prune.is_pruned(module):
            got = "one computed by torch.nn.utils.prune (call from_torch_prune_(model) first)"
        elif is_parametrized(module, parameter):
            got = "one computed by a parametrization (remove it first)"
        raise ValueError(f"{name}: expected a parameter to mask, got {got}")
    if is_lazy(weight) or weight.is_meta:
        raise ValueError(f"{name}: expected a weight with data, got none yet (load or run the model first)")
    return weight


def _check_mask(fqn: str, mask: object, weight: Tensor) -> None:
    name = f"masks[{fqn!r}]"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name}: expected a bool tensor, got {got} (True = kept)")
    if mask.shape != weight.shape:
        got = f"shape {tuple(mask.shape)}"
        raise ValueError(f"{name}: expected the weight's shape {tuple(weight.shape)}, got {got}")
