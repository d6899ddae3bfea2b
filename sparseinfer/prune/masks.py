"""Masks that last: pruned weights stay zero while a model is trained, saved, loaded and copied."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

NAME = "weight_mask"


def hold_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Keep the weights that each mask prunes at zero from now on; in place, returns the model.

    masks  bool, True = kept, of the shape of `weight` in the module of that name, whatever its class

    `weight` stays an ordinary parameter. The mask becomes the buffer `weight_mask`: it is in `state_dict()`,
    and in every copy of the module. Gradients are zero where weights are pruned, before anybody clips or
    reduces them. Every step of a torch optimizer leaves zeros there, whatever its momentum or an earlier
    state says; other writes to the weight are corrected at the next forward.

    A module that has a mask already gets the new one; weights that return start at zero. Of modules that
    share a weight the first holds its mask. The model is unchanged after any error. TypeError or ValueError:
    a name that is no module, a mask of another dtype or shape, a weight that is no initialised parameter, or
    two different masks for one weight.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = {id(held.weight): held.module for held in map(held_mask, modules.values()) if held}
    chosen: dict[nn.Module, Tensor] = {}
    for fqn, mask in masks.items():
        if fqn not in modules:
            raise ValueError(f"masks: expected names of the model's modules, got {fqn!r}")
        weight = _maskable_weight(fqn, modules[fqn])
        _check_mask(fqn, mask, weight)
        first = chosen.setdefault(owners.setdefault(id(weight), modules[fqn]), mask)
        if not torch.equal(first.to(mask.device), mask):
            raise ValueError(f"masks[{fqn!r}]: expected the mask of those who share its weight, got another")

    for module, mask in chosen.items():
        held = held_mask(module)
        if held is None:
            held = HeldMask(module)
            device = module.get_parameter("weight").device
            module.register_buffer(NAME, mask.detach().to(device, copy=True))
            module.register_forward_pre_hook(held)
        else:
            held.mask.copy_(mask)
        held.enforce()
    return model


def masks_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that a model holds, by module name: the buffers themselves. {} if it holds none.

    Of a `state_dict` instead of a model: the masks that were saved in it, by this library or by
    torch.nn.utils.prune, for `hold_masks_` of the model that is to load it. ValueError for one of a model
    under torch.ao.pruning, which does not save its masks.
    """
    if isinstance(model, nn.Module):
        return {fqn: module.weight_mask for fqn, module in model.named_modules() if held_mask(module)}
    for key in model:
        if key.endswith("parametrizations.weight.original"):
            hint = "call squash_mask() of its sparsifier before saving"
            got = f"{key!r} of torch.ao.pruning, which does not save masks"
            raise ValueError(f"model: expected a state_dict with masks, got {got} ({hint})")
    ending = f".{NAME}"
    saved = {
        f".{key}".removesuffix(ending): mask for key, mask in model.items() if f".{key}".endswith(ending)
    }
    return {fqn.removeprefix("."): mask.bool() for fqn, mask in saved.items()}


def finalize_(model: nn.Module) -> nn.Module:
    """Bake the masks in: plain weights with zeros, without buffers and hooks; in place, returns the model.

    Training on may fill the zeros. A model without masks is left as it is.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if held := held_mask(module):
            held.remove()
    return model


class HeldMask:
    """Keeps the pruned weights of one module at zero.

    It is a forward pre-hook, so copies and pickles of the module carry it. It works on the parameter that
    the module has at the moment, which may be another one than before.

    dense_gradient  while `keeps_dense_gradient`: the sum of the weight's gradients before they are masked
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._start()

    def _start(self) -> None:
        self.keeps_dense_gradient = False
        self.dense_gradient: Tensor | None = None
        self._claimed: nn.Parameter | None = None
        self._handle: RemovableHandle | None = None
        self._versions: tuple[int, int] | None = None
        _all_held.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.module = state["module"]
        self._start()

    @property
    def weight(self) -> nn.Parameter | None:
        # Under torch.func.functional_call the weight may be a tensor of somebody else.
        weight = self.module._parameters.get("weight")
        return weight if isinstance(weight, nn.Parameter) else None

    @property
    def mask(self) -> Tensor:
        mask: Any = self.module._buffers[NAME]
        return mask

    def __call__(self, module: nn.Module, args: object) -> None:
        """Before a forward: correct what was written since, by load_state_dict for one."""
        weight = self.weight
        if weight is None or torch.compiler.is_compiling():
            return
        self._claim(weight)
        if self._versions is None or self._versions != self._versions_of(weight):
            # An earlier forward may still need the weight for its backward: no write without need.
            if bool(((weight.detach() != 0) & ~self.mask).any()):
                self.enforce()
            self._versions = self._versions_of(weight)

    @torch.no_grad()
    def enforce(self) -> None:
        """Zeros where the mask prunes, in the weight and in its gradients from now on."""
        weight = self.weight
        if weight is not None:
            self._claim(weight)
            weight.masked_fill_(~self.mask, 0)
            self._versions = self._versions_of(weight)

    def remove(self) -> None:
        """Leave a plain module with zeros in its weight."""
        self.enforce()
        self._release()
        _all_held.discard(self)
        hooks = self.module._forward_pre_hooks
        del hooks[next(key for key, hook in hooks.items() if hook is self)]
        del self.module._buffers[NAME]

    def _claim(self, weight: nn.Parameter) -> None:
        if weight is not self._claimed:
            self._release()
            self._claimed = weight
        if self._handle is None and weight.requires_grad:
            # Weakly: a hook is no reason for a model to live on.
            mask_gradient = weakref.WeakMethod(self._mask_gradient)

            def hook(grad: Tensor) -> Tensor:
                bound = mask_gradient()
                return grad if bound is None else bound(grad)

            self._handle = weight.register_hook(hook)

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._claimed = self._versions = None

    def _versions_of(self, weight: nn.Parameter) -> tuple[int, int] | None:
        """They count writes. Inference tensors have none."""
        if weight.is_inference() or self.mask.is_inference():
            return None
        return weight._version, self.mask._version

    def _mask_gradient(self, grad: Tensor) -> Tensor:
        if self.keeps_dense_gradient:
            dense = grad.detach()
            self.dense_gradient = (
                dense.clone() if self.dense_gradient is None else self.dense_gradient + dense
            )
        return torch.where(self.mask, grad, 0)


_all_held: weakref.WeakSet[HeldMask] = weakref.WeakSet()


def held_mask(module: nn.Module) -> HeldMask | None:
    """What holds the module's mask; None without one."""
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, HeldMask)), None)


def _after_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Momentum, or the state of an optimizer that is older than the mask, may move a pruned weight."""
    if len(_all_held):
        stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        for held in list(_all_held):
            if id(held.weight) in stepped:
                held.enforce()


register_optimizer_step_post_hook(_after_step)


def _maskable_weight(fqn: str, module: nn.Module) -> nn.Parameter:
    name = f"{fqn}.weight".removeprefix(".")
    weight = module._parameters.get("weight")
    if weight is None:
        got = f"a {type(module).__name__} without one"
        if prune.is_pruned(module):
            got = "one computed by torch.nn.utils.prune (call from_torch_prune_(model) first)"
        elif is_parametrized(module, "weight"):
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
