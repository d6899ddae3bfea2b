"""Multiplies the pruning masks of NNCF, which it applies while the model runs, into the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

# The child of a wrapped model that holds its hooks, and where the masks among them are defined.
_HOOKS = "__nncf_hooks"
_MASKS = "nncf.torch.function_hook.pruning."
_WRAPPED = ("forward", "_replicate_for_data_parallel")


@contextmanager
def nncf_masks_merged(model: nn.Module, *, keep: bool) -> Iterator[None]:
    """In the block, weights have zeros where masks of `nncf.prune` are; masks and wrapper are gone.

    Parameters stay the same objects. Afterwards the model is as it was; with `keep` only after an error. A
    model that NNCF did not touch stays unchanged. The masks of the regularization-based mode are taken as in
    eval mode. ValueError, before anything changes: the model has other hooks of NNCF, such as quantizers.
    """
    if not isinstance(model, nn.Module):
        yield  # refused by those who take it
        return
    undo = _merge_(model)
    try:
        yield
    except BaseException:
        undo()
        raise
    if not keep:
        undo()


def _merge_(model: nn.Module) -> Callable[[], None]:
    """Merges the masks in place; returns what undoes this."""
    wrapped = [module for module in model.modules() if _HOOKS in module._modules]
    weights = {id(p): (p, new) for module in wrapped for p, new in _pruned_weights(module)}
    undo = [_restore(p, p.data) for p, _ in weights.values()] + [_restore_wrapper(m) for m in wrapped]
    for parameter, new in weights.values():
        parameter.data = new
    for module in wrapped:
        _unwrap(module)

    def restore() -> None:
        for step in undo:
            step()

    return restore


@torch.no_grad()
def _pruned_weights(module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    storage: Any = module._modules[_HOOKS]
    if before := next(iter(storage.pre_hooks), None):
        _refuse(before, next(iter(storage.pre_hooks[before].values())))
    parameters, nothing = dict(module.named_parameters(remove_duplicate=False)), torch.empty(0)
    for key, hooks in storage.post_hooks.items():
        # "encoder:0:weight__0": the tensor that the parameter of this name gives
        name = key.rpartition("__")[0].replace(":", ".")
        parameter = parameters.get(name)
        value = nothing if parameter is None else parameter.detach()
        for hook in hooks.values():
            if parameter is None or not type(hook).__module__.startswith(_MASKS):
                _refuse(key, hook)
            value = _called_in_eval_mode(hook, value)
        if parameter is not None:
            yield parameter, value.to(parameter.dtype)


def _refuse(key: str, hook: nn.Module) -> NoReturn:
    got = f"{type(hook).__name__} at {key!r}"
    raise ValueError(f"model: expected only pruning masks of NNCF, got {got} (call nncf.strip first)")


def _called_in_eval_mode(hook: nn.Module, value: Tensor) -> Tensor:
    training = hook.training
    hook.training = False
    try:
        masked: Tensor = hook(value)
    finally:
        hook.training = training
    return masked


def _unwrap(module: nn.Module) -> None:
    del module._modules[_HOOKS]
    for name in _WRAPPED:
        wrapper: Any = vars(module).pop(name, None)
        inner = getattr(wrapper, "orig_forward", None) or getattr(wrapper, "func", None)
        # What the class defines needs no attribute of the instance.
        if inner is not None and getattr(inner, "__func__", None) is not getattr(type(module), name, None):
            setattr(module, name, inner)


def _restore(parameter: nn.Parameter, data: Tensor) -> Callable[[], None]:
    def step() -> None:
        parameter.data = data

    return step


def _restore_wrapper(module: nn.Module) -> Callable[[], None]:
    own: Mapping[str, Any] = {name: vars(module)[name] for name in _WRAPPED if name in vars(module)}
    children = dict(module._modules)

    def step() -> None:
        vars(module).update(own)
        module._modules.clear()
        module._modules.update(children)

    return step
