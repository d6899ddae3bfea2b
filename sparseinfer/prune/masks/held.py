"""Masks that last: pruned weights stay zero while a model is trained, saved, loaded and copied."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from sparseinfer.prune.mask_buffer import MaskBuffer, as_buffer, as_tensor, plain_masks

_ENDING = "_mask"


def hold_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Keep the weights that each mask prunes at zero from now on; in place, returns the model.

    masks  bool, True = kept, of the shape of `weight` in the module of that name, whatever its class; or of
           the parameter of that name, such as "attention.in_proj_weight"

    The weight stays an ordinary parameter. The mask becomes the buffer `weight_mask`, or that of the other
    parameter's name with `_mask` behind it: it is in `state_dict()`, and in every copy of the module.
    Gradients are zero where weights are pruned, before anybody clips or reduces them. Every step of a torch
    optimizer leaves zeros there, whatever its momentum or an earlier state says, and so does
    `load_state_dict`; other writes to the weight are corrected at the next forward of its module.

    A module that has a mask already gets the new one; weights that return start at zero. Of modules that
    share a weight the first holds its mask. The model is unchanged after any error. TypeError or ValueError:
    a name that is no module and no parameter, a mask of another dtype or shape, a weight that is no
    initialised parameter, or two different masks for one weight.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
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
        held = next((each for each in held_masks(module) if each.name == name), None)
        if held is None:
            held = HeldMask(module, name)
            held.place(mask)
        else:
            held.mask.copy_(mask)
        held.enforce()
    return model


def masks_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that a model holds, bool, True = kept: the memory of the buffers itself. {} if it holds none.

    By the name of the module, or of the parameter where that is not called `weight`: as `hold_masks_` takes
    them. Of a `state_dict` instead of a model: the masks that were saved in it, by this library or by
    torch.nn.utils.prune, for `hold_masks_` of the model that is to load it. ValueError for one of a model
    under torch.ao.pruning, which does not save its masks.
    """
    if isinstance(model, nn.Module):
        return {
            _key(fqn, held.name): held.mask
            for fqn, module in model.named_modules()
            for held in held_masks(module)
        }
    for key in model:
        if key.endswith("parametrizations.weight.original"):
            hint = "call squash_mask() of its sparsifier before saving"
            got = f"{key!r} of torch.ao.pruning, which does not save masks"
            raise ValueError(f"model: expected a state_dict with masks, got {got} ({hint})")
    found = {}
    for key, mask in model.items():
        owner, _, name = key.removesuffix(_ENDING).rpartition(".")
        if key.endswith(_ENDING) and (name == "weight" or _is_mask_of_matrices(model, key, mask)):
            found[_key(owner, name)] = mask.bool()
    return found


def _is_mask_of_matrices(state: Mapping[str, Any], key: str, mask: object) -> bool:
    """Beside a weight of that name and shape; of biases, torch's own are left to torch."""
    name = key.removesuffix(_ENDING)
    weight = state.get(name, state.get(f"{name}_orig"))
    if not isinstance(mask, Tensor) or not isinstance(weight, Tensor):
        return False
    return mask.shape == weight.shape and weight.dim() > 1


def finalize_(model: nn.Module) -> nn.Module:
    """Bake the masks in: plain weights with zeros, without buffers and hooks; in place, returns the model.

    Training on may fill the zeros. A model without masks is left as it is.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        for held in held_masks(module):
            held.remove()
    return model


class HeldMask:
    """Keeps the pruned weights in one parameter of a module at zero.

    It is a forward pre-hook, and one of `load_state_dict`, so copies and pickles of the module carry it. It
    works on the parameter that the module has at the moment, which may be another one than before.

    name            of the parameter; its mask is the buffer of that name with `_mask` behind it
    dense_gradient  while `keeps_dense_gradient`: the sum of the weight's gradients before they are masked
    """

    def __init__(self, module: nn.Module, name: str = "weight") -> None:
        self.module = module
        self.name = name
        self._start()

    def place(self, mask: Tensor) -> None:
        """Make it the module's: the buffer and the hooks."""
        device = self.module.get_parameter(self.name).device
        self.module.register_buffer(self.buffer, as_buffer(mask.detach().to(device, copy=True)))
        self.module.register_forward_pre_hook(self)
        self.module.register_load_state_dict_post_hook(self)
        if plain_masks not in self.module._state_dict_hooks.values():
            self.module.register_state_dict_post_hook(plain_masks)

    def _start(self) -> None:
        self.keeps_dense_gradient = False
        self.dense_gradient: Tensor | None = None
        self._claimed: nn.Parameter | None = None
        self._handle: RemovableHandle | None = None
        self._versions: tuple[int, int] | None = None
        _all_held.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.module = state["module"]
        self.name = state.get("name", "weight")
        self._start()

    @property
    def buffer(self) -> str:
        return f"{self.name}{_ENDING}"

    @property
    def weight(self) -> nn.Parameter | None:
        # Under torch.func.functional_call the weight may be a tensor of somebody else.
        weight = self.module._parameters.get(self.name)
        return weight if isinstance(weight, nn.Parameter) else None

    @property
    def mask(self) -> Tensor:
        mask: Any = self.module._buffers[self.buffer]
        return as_tensor(mask)

    def __call__(self, module: nn.Module, args: object) -> None:
        """Before a forward, or after load_state_dict: correct what was written since."""
        weight = self.weight
        if weight is None or torch.compiler.is_compiling():
            return
        mask: Any = module._buffers[self.buffer]
        if type(mask) is not MaskBuffer:  # assigned by load_state_dict, or pickled by an older version
            module._buffers[self.buffer] = as_buffer(mask.bool())
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
        _unhook(self.module._forward_pre_hooks, self)
        _unhook(self.module._load_state_dict_post_hooks, self)
        if not held_masks(self.module):
            _unhook(self.module._state_dict_hooks, plain_masks)
        del self.module._buffers[self.buffer]

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


def held_masks(module: nn.Module) -> list[HeldMask]:
    """What holds the module's masks, one for each of its weights that has one."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, HeldMask)]


def _unhook(hooks: MutableMapping[int, Any], hook: object) -> None:
    for key in [key for key, each in hooks.items() if each is hook]:
        del hooks[key]


def _after_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Momentum, or the state of an optimizer that is older than the mask, may move a pruned weight."""
    if len(_all_held):
        stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        for held in list(_all_held):
            if id(held.weight) in stepped:
                held.enforce()


register_optimizer_step_post_hook(_after_step)


def _key(fqn: str, name: str) -> str:
    """What the mask of a module's parameter is called."""
    return fqn if name == "weight" else f"{fqn}.{name}".removeprefix(".")


def _place(modules: Mapping[str, nn.Module], key: str) -> tuple[nn.Module, str]:
    """The module and the parameter that a mask of this name is for."""
    if key in modules:
        return modules[key], "weight"
    owner, _, name = key.rpartition(".")
    if not isinstance(getattr(modules.get(owner), name, None), Tensor):
        raise ValueError(f"masks: expected names of the model's modules, got {key!r}")
    return modules[owner], name


def _maskable_weight(key: str, module: nn.Module, parameter: str) -> nn.Parameter:
    name = key if f".{key}".endswith(f".{parameter}") else f"{key}.weight".removeprefix(".")
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
