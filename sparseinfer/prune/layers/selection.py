"""Selects the layers of a model to prune or calibrate."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import TypeAlias

from torch import nn

from sparseinfer.prune.checks import check_module
from sparseinfer.prune.layers.kinds import attention_outputs, kinds_of, prunable_types
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.names import is_named, matches, texts_of, weight_key
from sparseinfer.prune.layers.weights import memory_of, prunable_weight
from sparseinfer.select import FilterFn, Patterns, select_modules

# (module, parameter) -> the names of both, under each name that the model has for the module
NamesOfWeights: TypeAlias = "dict[tuple[nn.Module, str], list[tuple[str, str]]]"


def prunable_layers(
    model: nn.Module,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> dict[str, Layer]:
    """The selected layers by name, in the order of the model; a shared weight is listed once.

    `targets` and `ignore` select modules, or, with the full name of a weight that is not called `weight`,
    such as "lstm.weight_hh_l0", that weight alone. `filter_fn` is called with the module.

    A warning names modules that were not selected but share a selected weight. TypeError or ValueError: an
    argument of the wrong kind (see sparseinfer.select.select_modules), or a selected weight that cannot be
    pruned in place: not yet materialised (lazy or meta), holding NaN, expanded, an inference tensor, or
    computed from other parameters by torch.nn.utils.prune or a parametrization, which would overwrite the
    zeros on the next forward.
    """
    return _layers(model, filter_fn, targets, ignore, stacklevel=5)


def layers_named(model: nn.Module, names: Collection[str]) -> dict[str, Layer]:
    """The model's layers with these names."""

    def holds_one(module: nn.Module, fqn: str) -> bool:
        return any(weight_key(fqn, parameter) in names for parameter in kinds_of(module))

    return _layers(model, holds_one, None, None, stacklevel=5, names=names)


def _layers(
    model: nn.Module,
    filter_fn: FilterFn | None,
    targets: Patterns,
    ignore: Patterns,
    *,
    stacklevel: int,
    names: Collection[str] | None = None,
) -> dict[str, Layer]:
    check_module(model)
    names_of = _names_of_weights(model)
    wanted = _targets_of_modules(model, names_of, targets)
    modules = select_modules(model, prunable_types(model), filter_fn, wanted, ignore, stacklevel=stacklevel)
    outputs = attention_outputs(model)
    layers: dict[str, Layer] = {}
    seen: set[object] = set()
    for module_fqn, module in modules.items():
        for parameter, kind in kinds_of(module).items():
            fqn = weight_key(module_fqn, parameter)
            if names is not None and fqn not in names:
                continue
            if parameter != "weight" and not _is_chosen(names_of[module, parameter], module, targets, ignore):
                continue
            weight = prunable_weight(module_fqn, module, parameter)
            if memory_of(weight) not in seen:
                seen.add(memory_of(weight))
                is_seen = kind.read is not None
                layers[fqn] = Layer(fqn, module, weight, parameter, is_seen, outputs.get(module))
    _warn_of_other_owners(model, modules, layers, stacklevel)
    return layers


def _names_of_weights(model: nn.Module) -> NamesOfWeights:
    """Of each weight that is not called `weight`: all names of its module, and its own under each."""
    names_of: NamesOfWeights = {}
    for fqn, module in model.named_modules(remove_duplicate=False):
        for parameter in kinds_of(module):
            if parameter != "weight":
                names = names_of.setdefault((module, parameter), [])
                names.append((fqn, weight_key(fqn, parameter)))
    return names_of


def _targets_of_modules(model: nn.Module, names_of: NamesOfWeights, targets: Patterns) -> Patterns:
    """The targets as `select_modules` takes them: instead of a weight's own name that of its module."""
    wanted = []
    for text in texts_of(targets):
        owners = [names[0][0] for names in names_of.values() if any(matches(text, name) for _, name in names)]
        # A pattern that matches weights alone would be reported as one without a match.
        if not owners or any(matches(text, fqn) for fqn, module in model.named_modules() if kinds_of(module)):
            wanted.append(text)
        wanted += owners
    return list(dict.fromkeys(wanted)) if wanted else targets


def _is_chosen(names: list[tuple[str, str]], module: nn.Module, targets: Patterns, ignore: Patterns) -> bool:
    """Whether a weight of a selected module is meant too."""
    all_names = [name for pair in names for name in pair]
    if is_named(ignore, module, *all_names):
        return False
    return targets is None or is_named(targets, module, *all_names)


def _warn_of_other_owners(
    model: nn.Module, modules: Mapping[str, nn.Module], layers: Mapping[str, Layer], stacklevel: int
) -> None:
    pruned = {id(layer.weight): fqn for fqn, layer in layers.items()}
    selected = set(modules.values())
    for fqn, module in model.named_modules():
        if module in selected:
            continue
        for name, parameter in module.named_parameters(prefix=fqn, recurse=False):
            if id(parameter) in pruned:
                owner = pruned[id(parameter)]
                hint = f"ignore=[{owner!r}] keeps both"
                message = f"{name}: not selected, but changed too, because {owner!r} shares it ({hint})"
                # The caller of prune_, quantize_ or calibrate.
                warnings.warn(message, UserWarning, stacklevel=stacklevel)
