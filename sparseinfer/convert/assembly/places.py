"""Replaces modules wherever a model holds them: as children, and in attributes, lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sparseinfer._running import OWN


def replace_(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace each key by its value, under every name."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
        attributes = vars(parent)
        for name in [name for name in attributes if name not in OWN]:
            attributes[name] = _replaced(attributes[name], replacements, set())


def _replaced(value: Any, replacements: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """The value with modules replaced; lists and dicts are the same objects as before."""
    if isinstance(value, nn.Module):
        return replacements.get(value, value)
    if id(value) in seen or type(value) not in (list, tuple, dict):
        return value
    seen.add(id(value))
    if type(value) is tuple:
        made = tuple(_replaced(item, replacements, seen) for item in value)
        return value if all(a is b for a, b in zip(made, value, strict=True)) else made
    for key, item in list(value.items() if type(value) is dict else enumerate(value)):
        value[key] = _replaced(item, replacements, seen)
    return value
