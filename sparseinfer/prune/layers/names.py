"""Names of weights, and matching of `targets` and `ignore` against them."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import nn

from sparseinfer.select import Patterns


def parameter_name(module_fqn: str, parameter: str) -> str:
    """The parameter's name in `named_parameters()`; the model itself is named ""."""
    return f"{module_fqn}.{parameter}".removeprefix(".")


def weight_key(module_fqn: str, parameter: str) -> str:
    """A weight's name in statistics, masks and reports: the module's name if it is `weight`."""
    return module_fqn if parameter == "weight" else parameter_name(module_fqn, parameter)


def is_named(patterns: Patterns, module: nn.Module, *names: str) -> bool:
    """Whether one of the patterns matches the module's class or one of these names."""
    classes = {base.__name__ for base in type(module).__mro__}
    return any(text in classes or any(matches(text, name) for name in names) for text in texts_of(patterns))


def texts_of(patterns: Patterns) -> list[str]:
    """The patterns as a list; `select_modules` checks them."""
    if isinstance(patterns, str):
        return [patterns]
    listed = patterns if isinstance(patterns, Collection) else ()
    return [text for text in listed if isinstance(text, str)]


def matches(text: str, name: str) -> bool:
    """Whether a pattern of `targets` or `ignore` is this name, or a regular expression that matches it."""
    if not text.startswith("re:"):
        return text == name
    try:
        return re.match(text[3:], name) is not None
    except re.error:
        return False  # refused by `select_modules`, with a message
