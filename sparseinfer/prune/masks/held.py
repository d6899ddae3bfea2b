"""HeldMask: keeps pruned weights at zero through training, saving, loading and copying."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from sparseinfer.prune.masks.mask_buffer import MaskBuffer, as_buffer, as_tensor, plain_masks

# Behind the parameter's name: that of the buffer that is its mask.
ENDING = "_mask"


class HeldMask:
    """Keeps the pruned weights in one parameter of a module at zero.

    It is a forward pre-hook and a `load_state_dict` hook, so copies and pickles of the module include it. It
    acts on the module's present parameter, even if that was replaced.

    name            of the parameter; its mask is the buffer of that name with `_mask` behind it
    dense_gradient  while `keeps_dense_gradient`: the sum of the weight's gradients before they are masked
    """

    def __init__(self, module: nn.Module, name: str = "weight") -> None:
        self.module = module
        self.name = name
        self._start()

    def place(self, mask: Tensor) -> None:
        """Attach it to the module: the buffer and the hooks."""
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
        return f"{self.name}{ENDING}"

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
        """Set pruned weights to zero, and mask the weight's gradients from now on."""
        weight = self.weight
        if weight is not None:
            self._claim(weight)
            weight.masked_fill_(~self.mask, 0)
            self._versions = self._versions_of(weight)

    def remove(self) -> None:
        """Remove it, leaving a plain module with zeros in its weight."""
        self.enforce()
        self._release()
        _all_held.discard(self)
        _unhook(self.module._forward_pre_hooks, self)
        _unhook(self.module._load_state_dict_post_hooks, self)
        if not held_masks(self.module):
            _unhook(self.module._state_dict_hooks, plain_masks)
        del self.module._buffers[self.buffer]

    def _claim(self, weight: nn.Parameter) -> None:
        """Mask the gradients of the parameter that the module has now."""
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
        """How often weight and mask were written in place; None of inference tensors, which do not count."""
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
    """The HeldMasks of a module, one for each weight that has a mask."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, HeldMask)]


def all_held_masks(model: nn.Module) -> list[HeldMask]:
    """The HeldMasks of all modules of the model, in order."""
    return [held for module in model.modules() for held in held_masks(module)]


def _unhook(hooks: MutableMapping[int, Any], hook: object) -> None:
    for key in [key for key, present in hooks.items() if present is hook]:
        del hooks[key]


def _after_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Momentum, or the state of an optimizer that is older than the mask, may move a pruned weight."""
    if len(_all_held):
        stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        for held in list(_all_held):
            if id(held.weight) in stepped:
                held.enforce()


register_optimizer_step_post_hook(_after_step)
