"""Which activation of the kernels a module or function computes, told by what it is: nothing is tried out."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparseinfer._source import resolved, source_of

# torch's functions, of one tensor, by identity; `approximate` makes another one of gelu.
_FUNCTIONS: Mapping[object, str] = {F.relu: "relu", torch.relu: "relu", F.gelu: "gelu", F.silu: "silu"}
_GELU = {"none": "gelu", "tanh": "gelu_tanh"}

# transformers writes these as formulas: their values are the function's, but for rounding.
_FORMULAS = {
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
}


# As they are in torch at import: somebody who replaces a forward of torch later means something else.
_RELU, _SILU, _GELU_FORWARD = nn.ReLU.forward, nn.SiLU.forward, nn.GELU.forward
_CALL, _CALL_IMPL = nn.Module.__call__, nn.Module._call_impl


def is_called_as_torch_does(module: Any) -> bool:
    """Whether a call of the module is its hooks and the forward of its class."""
    kind: Any = type(module)
    return kind.__call__ is _CALL and kind._call_impl is _CALL_IMPL and "forward" not in vars(module)


def activation_name(function: object) -> str:
    """ "relu", "gelu", "gelu_tanh" or "silu"; "none" for every other module or function.

    Modules are known by their `forward`: that of torch's own class, or one that only returns one of torch's
    functions of its argument, in source that can be read. Hooks are not looked at.
    """
    if not isinstance(function, nn.Module):
        return _of_function(function, {})
    if not is_called_as_torch_does(function):
        return "none"
    kind = type(function)
    forward: object = kind.forward
    if forward is _RELU:
        return "relu"
    if forward is _SILU:
        return "silu"
    if forward is _GELU_FORWARD:
        return _GELU.get(str(function.approximate), "none")
    if kind.__module__ == "transformers.activations" and kind.__name__ in _FORMULAS:
        return _FORMULAS[kind.__name__]
    return _of_source(function, forward)


def _of_function(function: object, options: Mapping[str, object]) -> str:
    if isinstance(function, functools.partial) and not function.args:
        return _of_function(function.func, {**function.keywords, **options})
    try:
        name = _FUNCTIONS.get(function, "none")
    except TypeError:  # not hashable
        return "none"
    rest = dict(options)
    rest.pop("inplace", None)
    if name == "gelu":
        name = _GELU.get(str(rest.pop("approximate", "none")), "none")
    return "none" if rest else name


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
