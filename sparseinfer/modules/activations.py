"""Tells which kernel activation a module or function computes, by its type, without running it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from torch import nn

from sparseinfer._source import resolved, source_of
from sparseinfer.ops.names import ACTIVATIONS

# By forward of torch's modules, as they are at import: somebody who replaces one later means something else.
# The names of what it computes.
_OF_FORWARD: dict[object, list[str]] = {}
for _name, _activation in ACTIVATIONS.items():
    for _module in _activation.modules:
        _OF_FORWARD.setdefault(_module.forward, []).append(_name)

_CALL, _CALL_IMPL = nn.Module.__call__, nn.Module._call_impl

# What torch's functions take where a keyword of an activation is not given.
_DEFAULTS = {"approximate": "none"}


def is_called_as_torch_does(module: Any) -> bool:
    """Whether a call of the module runs only its hooks and the forward of its class."""
    kind: Any = type(module)
    return kind.__call__ is _CALL and kind._call_impl is _CALL_IMPL and "forward" not in vars(module)


def activation_name(function: object) -> str:
    """The name in `ops.ACTIVATIONS`; "none" for every other module or function.

    Modules are known by their `forward`: that of torch's own class, or one that only returns one of torch's
    functions of its argument, in source that can be read. Hooks are ignored.
    """
    if not isinstance(function, nn.Module):
        return _of_function(function, {})
    if not is_called_as_torch_does(function):
        return "none"
    kind = type(function)
    forward: object = kind.forward
    if isinstance(forward, FunctionType) and forward in _OF_FORWARD:
        return next((name for name in _OF_FORWARD[forward] if _has_attributes(function, name)), "none")
    if kind.__module__ == "transformers.activations":
        formulas = (name for name, other in ACTIVATIONS.items() if kind.__name__ in other.formulas)
        if name := next(formulas, None):
            return name
    return _of_source(function, forward)


def _has_attributes(module: nn.Module, name: str) -> bool:
    activation = ACTIVATIONS[name]
    wanted = [pair for pair in (activation.keyword, *activation.attributes) if pair[0]]
    given = [getattr(module, attribute) for attribute, _ in wanted]
    return all(isinstance(got, (int, float, str)) for got in given) and given == [v for _, v in wanted]


def _of_function(function: object, options: Mapping[str, object]) -> str:
    if isinstance(function, functools.partial) and not function.args:
        return _of_function(function.func, {**function.keywords, **options})
    given = {keyword: str(value) for keyword, value in options.items() if keyword != "inplace"}
    for name, activation in ACTIVATIONS.items():
        if any(function is call for call in activation.calls):
            keyword, value = activation.keyword
            if given == {} and value == _DEFAULTS.get(keyword, ""):
                return name
            if given == {keyword: value}:
                return name
    return "none"


def _of_source(module: nn.Module, forward: object) -> str:
    """The activation of a module whose forward is `return function(x)` and nothing else."""
    source = source_of(forward)
    if source is None:
        return "none"
    body = [line for line in source.definition.body if not _is_docstring(line)]
    arguments = source.definition.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    plain = not (arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults)
    if len(body) != 1 or len(names) != 2 or not plain:
        return "none"
    (line,) = body
    call = line.value if isinstance(line, ast.Return) else None
    if not isinstance(call, ast.Call) or len(call.args) != 1:
        return "none"
    (argument,) = call.args
    if not isinstance(argument, ast.Name) or argument.id != names[1]:
        return "none"
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or not isinstance(keyword.value, ast.Constant):
            return "none"
        options[keyword.arg] = keyword.value.value
    function = resolved(call.func, module, source.function)
    return "none" if isinstance(function, nn.Module) else _of_function(function, options)


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
