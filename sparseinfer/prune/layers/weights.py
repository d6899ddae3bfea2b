"""Checks whether a parameter can be pruned in place, and which parameters share memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparseinfer.prune.layers.names import parameter_name


def prunable_weight(module_fqn: str, module: nn.Module, parameter: str) -> nn.Parameter:
    """The module's parameter of that name, after every check that keeps the later write from failing."""
    name = parameter_name(module_fqn, parameter)
    weight = module._parameters.get(parameter)
    if weight is None:
        computed = _computed_by(module, parameter)
        raise ValueError(f"{name}: expected a parameter, got a tensor computed by {computed}")
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
        hint = "call this under torch.inference_mode()"
        raise ValueError(f"{name}: expected a writable weight, got an inference tensor ({hint})")
    if nans := int(weight.detach().isnan().sum()):
        raise ValueError(f"{name}: expected numbers, got {nans} NaN (the rank of a NaN is undefined)")
    return weight


def _computed_by(module: nn.Module, parameter: str) -> str:
    if parametrize.is_parametrized(module, parameter):
        call = f"torch.nn.utils.parametrize.remove_parametrizations(module, {parameter!r})"
        return f"a parametrization (call {call} first)"
    if hasattr(module, f"{parameter}_mask"):
        return f"torch.nn.utils.prune (call torch.nn.utils.prune.remove(module, {parameter!r}) first)"
    return "the module (make it a parameter first)"


def memory_of(weight: Tensor) -> object:
    """A key that is equal for two tensors with the same memory and strides."""
    pointer = weight.data_ptr() if weight.layout == torch.strided and not weight.is_meta else 0
    # Tensors without elements, data or a memory of their own.
    return (weight.device, pointer, weight.dtype, weight.shape, weight.stride()) if pointer else id(weight)
