"""Finds the weights of a model that pruning skips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparseinfer.prune.layers.kinds import kinds_of
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.names import is_named, parameter_name
from sparseinfer.prune.layers.weights import memory_of
from sparseinfer.select import Patterns

UNKNOWN = "it is of no kind of layer that is pruned"
UNSEEN = "a calibration does not see its inputs"

_COMPUTED = ".parametrizations."


def all_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Floating-point parameters of two or more dimensions by name, in the order of the model, each once."""
    named: dict[object, tuple[str, nn.Parameter]] = {}
    for name, _, weight in _weights(model):
        named.setdefault(memory_of(weight), (name, weight))
    return dict(named.values())


def unknown_weights(model: nn.Module, ignore: Patterns) -> dict[str, nn.Parameter]:
    """Weights of unsupported kinds, unless `ignore` names them or their module."""
    of_a_kind = {memory_of(weight) for name, owner, weight in _weights(model) if _is_of_a_kind(name, owner)}
    ignored = {
        memory_of(weight)
        for name, owner, weight in _weights(model)
        if is_named(ignore, owner, name.rpartition(".")[0], name)
    }
    return {
        name: weight
        for name, weight in all_weights(model).items()
        if memory_of(weight) not in of_a_kind and memory_of(weight) not in ignored
    }


def count_nonzero(weight: Tensor) -> int:
    """Number of non-zeros; numel if they cannot be counted: no data, or an unsupported tensor."""
    if weight.is_meta or weight.layout != torch.strided:
        return weight.numel()
    try:
        return int(weight.count_nonzero())
    except RuntimeError:  # a report is no reason to fail when all is written
        return weight.numel()


def split_by_inputs(
    layers: Mapping[str, Layer], needs: frozenset[str]
) -> tuple[dict[str, Layer], dict[str, Layer]]:
    """The layers that a method with these needs can prune, and those whose inputs cannot be recorded."""
    if not needs & {"gram", "norms"}:
        return dict(layers), {}
    seen = {fqn: layer for fqn, layer in layers.items() if layer.is_seen}
    return seen, {fqn: layer for fqn, layer in layers.items() if not layer.is_seen}


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """(name, the module that it is a weight of, parameter); a shared parameter comes under every name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for fqn, module in modules.items():
        # A parametrization keeps the weight of its module.
        owner, computed, _ = f".{fqn}".partition(_COMPUTED)
        holder = modules[owner.removeprefix(".")] if computed else module
        for name, weight in module._parameters.items():
            if weight is None or is_lazy(weight) or not weight.is_floating_point() or weight.dim() < 2:
                continue
            yield parameter_name(fqn, name), holder, weight


def _is_of_a_kind(name: str, owner: nn.Module) -> bool:
    """Whether pruning looks at weights of this name in such a module, computed ones too."""
    name = f".{name}"
    if _COMPUTED in name:
        return name.partition(_COMPUTED)[2].partition(".")[0] in kinds_of(owner)
    # torch.nn.utils.prune and the old weight_norm keep it under such names.
    parameter = name.rpartition(".")[2]
    return any(parameter in (kind, f"{kind}_orig", f"{kind}_g", f"{kind}_v") for kind in kinds_of(owner))
