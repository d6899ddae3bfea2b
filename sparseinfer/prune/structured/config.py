"""The config of a model of transformers, or of anything with a `config`, after pruning.

A config says one size for all layers. It is changed only if then it builds a model that is closer to the
pruned one; what it cannot say, the structure of the model says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparseinfer.prune.structured.groups import Group
from sparseinfer.prune.structured.kinds import CONFIG
from sparseinfer.prune.structured.tracing import named_tensors


def update_config(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> Callable[[], None]:
    """Change what the config says of heads, neurons and width; returns what takes it back."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return lambda: None
    before = dict(vars(config))
    for kind, names in CONFIG.items():
        lefts = {(g.size, g.size - len(removed.get(g.name, ()))) for g in groups if g.kind == kind}
        for size, left in sorted(lefts):
            edits = {
                name: old // size * left
                for name in sorted(names)
                if type(old := getattr(config, name, None)) is int
                and old
                and old % size == 0
                and left < size
                # Neurons and width are counted one by one.
                and (kind == "heads" or old == size)
            }
            _keep_if_closer(model, config, edits)
    return lambda: (vars(config).clear(), vars(config).update(before))[1]


def _keep_if_closer(model: nn.Module, config: Any, edits: Mapping[str, int]) -> None:
    if not edits:
        return
    before = _mismatches(model, config)
    old = {name: getattr(config, name) for name in edits}
    try:
        for name, value in edits.items():
            setattr(config, name, value)
        after = _mismatches(model, config)
        closer = after is not None and (before is None or after < before)
    except Exception:
        closer = False
    if not closer:
        for name, value in old.items():
            setattr(config, name, value)


def _mismatches(model: nn.Module, config: Any) -> int | None:
    """How many tensors have another shape than those that the config builds. None: it builds no model, or one
    that lacks something of this one, from which it could not be cut.
    """
    try:
        if hasattr(config, "validate"):
            config.validate()  # as saving does
        with torch.device("meta"):
            built = dict(named_tensors(type(model)(copy.deepcopy(config))))
    except Exception:
        return None
    count = 0
    for name, t in named_tensors(model):
        whole = built[name].shape if name in built else ()
        if len(whole) != t.dim() or any(a < b for a, b in zip(whole, t.shape, strict=True)):
            return None
        count += whole != t.shape
    return count
