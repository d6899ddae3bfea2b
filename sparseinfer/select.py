"""Selects modules of a model by the `filter_fn`, `targets` and `ignore` arguments of prune and convert."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from torch import nn

__all__ = ["FilterFn", "Patterns", "matches", "select_modules"]

# filter_fn(module, fully qualified name): whether the module is selected.
FilterFn: TypeAlias = Callable[[nn.Module, str], bool]
# Of `targets` and `ignore`: names, class names, or "re:" and a regular expression.
Patterns: TypeAlias = "str | Collection[str] | None"


def select_modules(
    model: nn.Module,
    types: tuple[type[nn.Module], ...],
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
    *,
    stacklevel: int = 3,
) -> dict[str, nn.Module]:
    """Modules of `types`, subclasses included, by fully qualified name, in the order of `named_modules()`.

    targets     modules to select, default all
    ignore      modules to leave out of these
    filter_fn   final decision on each of the remaining modules
    stacklevel  stack level that warnings refer to: 3 is the caller's caller

    `targets` and `ignore` hold fully qualified names, class names (of any base class too) or `re:` and a
    regular expression that `re.match` tries on the fully qualified name: the convention of llm-compressor.
    A module is selected if some target matches (no targets: every module), no ignore does, and
    `filter_fn(module, fqn)` is true (the convention of torchao). A module that the model holds under
    several names is listed once, under the first; any of its names can match. The model itself is named "".

    Warns about a target that matches nothing and about an empty selection. TypeError: an argument of the
    wrong type. ValueError: not a regular expression.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(
            f"filter_fn: expected a callable (module, fqn) -> bool, got {type(filter_fn).__name__}"
        )
    wanted = None if targets is None else [_Pattern("targets", text) for text in _listed("targets", targets)]
    refused = [_Pattern("ignore", text) for text in _listed("ignore", ignore)]

    names: dict[nn.Module, list[str]] = {}
    for fqn, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, types):
            names.setdefault(module, []).append(fqn)

    selected = {}
    unmatched = set(wanted or ())
    for module, fqns in names.items():
        targeted = {pattern for pattern in wanted or () if pattern.matches(module, fqns)}
        unmatched -= targeted
        if wanted is not None and not targeted:
            continue
        if any(pattern.matches(module, fqns) for pattern in refused):
            continue
        if filter_fn is None or filter_fn(module, fqns[0]):
            selected[fqns[0]] = module

    kinds = " or ".join(kind.__name__ for kind in types)
    if not selected:
        _warn(
            f"filter: expected at least one {kinds} to be selected, got none of {len(names)} in the model",
            stacklevel,
        )
    elif unmatched:
        texts = ", ".join(repr(pattern.text) for pattern in wanted or () if pattern in unmatched)
        _warn(f"targets: expected each to match a {kinds}, got {texts} without a match", stacklevel)
    return selected


def matches(module: nn.Module, fqns: Sequence[str], argument: str, patterns: Patterns) -> bool:
    """Whether a pattern of `argument`, "targets" or "ignore", matches a module of these names.

    As in `select_modules`, with its errors; None matches nothing.
    """
    return any(_Pattern(argument, text).matches(module, fqns) for text in _listed(argument, patterns))


class _Pattern:
    """One entry of `targets` or `ignore`."""

    def __init__(self, argument: str, text: str) -> None:
        self.text = text
        self._regex: re.Pattern[str] | None = None
        if text.startswith("re:"):
            try:
                self._regex = re.compile(text[3:])
            except re.error as error:
                message = f"{argument}: expected a regular expression after 're:', got {text!r} ({error})"
                raise ValueError(message) from None

    def matches(self, module: nn.Module, fqns: Sequence[str]) -> bool:
        if self._regex is not None:
            return any(self._regex.match(fqn) for fqn in fqns)
        return self.text in fqns or any(self.text == base.__name__ for base in type(module).__mro__)


def _listed(argument: str, patterns: Patterns) -> list[str]:
    if patterns is None:
        return []
    if isinstance(patterns, str):
        return [patterns]
    if not isinstance(patterns, Collection) or not all(isinstance(text, str) for text in patterns):
        raise TypeError(f"{argument}: expected a list of strings, got {patterns!r}")
    return list(patterns)


def _warn(message: str, stacklevel: int) -> None:
    warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)
