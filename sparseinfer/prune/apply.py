"""`prune_`: zeros in place, or nothing at all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparseinfer._select import FilterFn, Patterns, select_modules
from sparseinfer.prune.methods import Method
from sparseinfer.prune.report import PrunedLayer, PruneReport

TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d)


def prune_(
    model: nn.Module,
    method: Method,
    *,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> PruneReport:
    """Write zeros into the weights of the model's layers, in place; report what is left.

    Layers are nn.Linear, nn.Conv1d and nn.Conv2d.

    method                      what to prune, such as Magnitude(0.5)
    filter_fn, targets, ignore  which layers, default all: see sparseinfer._select.select_modules

    Weights are [n, k], or [n, c / groups, ...] of a convolution, of any floating dtype, device and strides.
    A weight that several modules share is pruned and counted once; if one of them was not selected, a
    warning says so. No masks stay behind: training on may fill the zeros again.

    The model is unchanged after any error. TypeError or ValueError: an argument of the wrong kind, or a
    selected weight that cannot be pruned in place: not yet materialised (lazy or meta), holding NaN,
    expanded, an inference tensor, or computed from other parameters by torch.nn.utils.prune or a
    parametrization, which would overwrite the zeros on the next forward (make those permanent first; the
    message names the call).
    """
    if not isinstance(method, Method):
        raise TypeError(f"method: expected a pruning method such as Magnitude(0.5), got {method!r}")
    modules = select_modules(model, TYPES, filter_fn, targets, ignore)
    weights: dict[str, Tensor] = {}
    seen: set[object] = set()
    for fqn, module in modules.items():
        weight = _prunable_weight(fqn, module)
        if _memory(weight) not in seen:
            seen.add(_memory(weight))
            weights[fqn] = weight
    _warn_of_other_owners(model, modules, weights)

    with torch.no_grad():
        masks = method.masks(weights)
        for fqn, weight in weights.items():
            weight.masked_fill_(~masks[fqn], 0)
        return PruneReport(
            tuple(
                PrunedLayer(fqn, tuple(weight.shape), int(weight.count_nonzero()))
                for fqn, weight in weights.items()
            )
        )


def _prunable_weight(fqn: str, module: nn.Module) -> Tensor:
    """The parameter `weight` of a module, after every check that keeps the later write from failing."""
    name = f"{fqn}.weight".removeprefix(".")
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(f"{name}: expected a parameter, got a tensor computed by {_computed_by(module)}")
    if is_lazy(weight):
        raise ValueError(f"{name}: expected an initialised weight, got a lazy one (run the model once first)")
    if weight.is_meta:
        raise ValueError(f"{name}: expected a weight with data, got a meta tensor (load the model first)")
    if weight.layout != torch.strided or not weight.is_floating_point():
        raise TypeError(
            f"{name}: expected a dense floating-point weight, got {weight.dtype}, {weight.layout}"
        )
    if any(stride == 0 and size > 1 for stride, size in zip(weight.stride(), weight.shape, strict=True)):
        hint = "give the module a .clone() of it"
        raise ValueError(f"{name}: expected one memory cell per weight, got an expanded tensor ({hint})")
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        hint = "call prune_ under torch.inference_mode()"
        raise ValueError(f"{name}: expected a writable weight, got an inference tensor ({hint})")
    if nans := int(weight.detach().isnan().sum()):
        raise ValueError(f"{name}: expected numbers, got {nans} NaN (the rank of a NaN is undefined)")
    return weight


def _computed_by(module: nn.Module) -> str:
    if parametrize.is_parametrized(module, "weight"):
        call = "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
        return f"a parametrization (call {call} first)"
    if hasattr(module, "weight_mask"):
        return "torch.nn.utils.prune (call torch.nn.utils.prune.remove(module, 'weight') first)"
    return "the module (make it a parameter first)"


def _memory(weight: Tensor) -> object:
    """Equal for two tensors that are the same memory read the same way."""
    if not weight.numel():
        return id(weight)
    return weight.device, weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


def _warn_of_other_owners(
    model: nn.Module, modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor]
) -> None:
    pruned = {id(weight): fqn for fqn, weight in weights.items()}
    selected = set(modules.values())
    for fqn, module in model.named_modules():
        if module in selected:
            continue
        for name, parameter in module.named_parameters(prefix=fqn, recurse=False):
            if id(parameter) in pruned:
                owner = pruned[id(parameter)]
                hint = f"ignore=[{owner!r}] keeps both"
                message = f"{name}: not selected, but pruned too, because {owner!r} shares it ({hint})"
                warnings.warn(message, UserWarning, stacklevel=3)
