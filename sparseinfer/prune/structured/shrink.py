"""Removes units from a model in place, with all that knows of their number; all of it can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseinfer.prune.structured import kinds
from sparseinfer.prune.structured.groups import NEURONS, Group
from sparseinfer.prune.structured.structure import set_structure, structure_of
from sparseinfer.prune.structured.tracing import HEADS, WIDTH, named_tensors

# Group name -> the units that are removed, sorted
Removed = Mapping[str, Sequence[int]]


class Shrinking:
    """The changes to a model, for `undo`. Smaller parameters are new objects, in the optimizer, too."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()

    def add_undo(self, back: Callable[[], None]) -> None:
        self._undo.append(back)

    def rewrite(self, values: Mapping[str, Tensor]) -> None:
        """Give weights new values of the same shapes."""
        tensors = dict(named_tensors(self._model))
        for name, value in values.items():
            weight, old = tensors[name], tensors[name].data
            self._undo.append(lambda weight=weight, old=old: setattr(weight, "data", old))  # type: ignore[misc]
            weight.data = value

    @torch.no_grad()
    def remove(self, groups: Sequence[Group], removed: Removed, optimizer: Optimizer | None = None) -> None:
        """Take the units out of all weights, of gradients and of what the optimizer keeps of them."""
        tensors = dict(named_tensors(self._model))
        structure = structure_of(self._model)
        kept = _kept_indices(groups, removed, tensors)
        for name, axes in kept.items():
            self._slice(tensors[name], axes, optimizer)
        now = dict(named_tensors(self._model))
        structure.shapes = {name: list(now[name].shape) for name in (*structure.shapes, *kept)}
        smaller = {id(now[name]) for name in kept}
        for module in self._model.modules():
            if any(id(t) in smaller for t in (*module._parameters.values(), *module._buffers.values())):
                self._set(module, kinds.sizes_of(module))
        for fqn, values in self._counts(groups, removed).items():
            structure.attributes.setdefault(fqn, {}).update(values)
            self._set(self._model.get_submodule(fqn), values)
        before = structure_of(self._model)
        self._undo.append(lambda: set_structure(self._model, before))
        set_structure(self._model, structure)

    def _slice(self, old: Tensor, axes: Mapping[int, Tensor], optimizer: Optimizer | None) -> None:
        """Put a smaller tensor into all places of this one."""

        def sliced(whole: Tensor) -> Tensor:
            for axis, kept in axes.items():
                whole = whole.index_select(axis, kept.to(whole.device))
            return whole

        new = sliced(old.detach())
        if isinstance(old, nn.Parameter):
            # Not the old one with smaller data: graphs of earlier runs hold on to its shape.
            new = nn.Parameter(new, requires_grad=old.requires_grad)
            vars(new).update(vars(old))
            new.grad = None if old.grad is None else sliced(old.grad)
        for module in self._model.modules():
            for registry in (module._parameters, module._buffers):
                for key in [key for key, value in registry.items() if value is old]:
                    self._put(registry, key, new)
        if optimizer is not None:
            self._put_into_optimizer(optimizer, old, new, sliced)

    def _put(self, holder: Any, key: Any, new: Any) -> None:
        old = holder[key]
        self._undo.append(lambda: holder.__setitem__(key, old))
        holder[key] = new

    def _put_into_optimizer(
        self, optimizer: Optimizer, old: Tensor, new: Tensor, sliced: Callable[[Tensor], Tensor]
    ) -> None:
        for group in optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                if parameter is old:
                    self._put(group["params"], i, new)
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            self._undo.append(lambda: optimizer.state.update({old: state}))
            self._undo.append(lambda: optimizer.state.pop(new))
            optimizer.state[new] = {
                key: sliced(value) if isinstance(value, Tensor) and value.shape == old.shape else value
                for key, value in state.items()
            }

    def _set(self, module: nn.Module, values: Mapping[str, Any]) -> None:
        before = {name: vars(module)[name] for name in values if name in vars(module)}
        self._undo.append(lambda: vars(module).update(before))
        vars(module).update({name: values[name] for name in before})

    def _counts(self, groups: Iterable[Group], removed: Removed) -> dict[str, dict[str, int]]:
        """New values of attributes of the model's own modules: module -> attribute -> value."""
        counts: dict[str, dict[str, int]] = {}
        for group in groups:
            gone = len(removed.get(group.name, ()))
            if not gone:
                continue
            for fqn in _owners(self._model, group):
                module = self._model.get_submodule(fqn)
                for name, old in _own_sizes(module).items():
                    new = _scaled(group, name, old, gone)
                    if new is not None:
                        counts.setdefault(fqn, {})[name] = new
        return counts


def _kept_indices(
    groups: Sequence[Group], removed: Removed, tensors: Mapping[str, Tensor]
) -> dict[str, dict[int, Tensor]]:
    """weight -> axis -> the indices that are left."""
    gone: dict[tuple[str, int], list[Any]] = {}
    for group in groups:
        units = list(removed.get(group.name, ()))
        for member in group.members if units else ():
            gone.setdefault((member.weight, member.axis), []).append(member.indices[units].reshape(-1))
    kept: dict[str, dict[int, Tensor]] = {}
    for (name, axis), indices in gone.items():
        stays = np.ones(tensors[name].shape[axis], bool)
        stays[np.concatenate(indices)] = False
        kept.setdefault(name, {})[axis] = torch.from_numpy(np.flatnonzero(stays))
    return kept


def _owners(model: nn.Module, group: Group) -> list[str]:
    """The modules around those whose weights have the units, from the inside out: they may count them. For
    heads and neurons the nearest that is not one of torch's own; for the width all.
    """
    names: dict[str, None] = {}
    for member in group.members:
        fqn = member.weight.rpartition(".")[0]
        parents = [fqn.rsplit(".", n)[0] for n in range(fqn.count(".") + 1)] + [""]
        own = [name for name in parents if not kinds.sizes_of(model.get_submodule(name))]
        names |= dict.fromkeys(own if group.kind == WIDTH else own[:1])
    return list(names)


def _own_sizes(module: nn.Module) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if type(value) is int and value > 0}


def _scaled(group: Group, name: str, old: int, gone: int) -> int | None:
    """What an attribute of this name and value becomes; None: it does not count the group's units."""
    left = group.size - gone
    if group.kind == HEADS and name in kinds.HEADS:
        return old // group.size * left if old % group.size == 0 else None
    if group.kind == NEURONS and name in kinds.NEURONS:
        return left if old == group.size else None
    if group.kind == WIDTH and name in kinds.WIDTH:
        return left if old == group.size else None
    return None
