"""Checks in a forward's source that it writes to no tensor between its calls of several Linears.

Of Linears that share one matrix, the first called computes the results of all; the others use theirs if x
is unchanged. torch's version counter detects writes to x, but not through `.data` or in inference mode.
Where the source does not show that nothing is written, a copy of x is kept and compared.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from sparseinfer._source import Source, is_path, resolved, source_of
from sparseinfer.convert.survey.chains import base_class
from sparseinfer.modules.activations import activation_name

# Methods that only look at a tensor, or make another one of it.
_METHODS = frozenset(
    [
        "view",
        "reshape",
        "transpose",
        "permute",
        "contiguous",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "expand",
        "size",
        "dim",
        "float",
        "to",
        "type_as",
        "swapaxes",
        "movedim",
        "softmax",
        "sigmoid",
        "tanh",
        "relu",
        "matmul",
        "mm",
        "bmm",
        "mul",
        "add",
        "sub",
        "mean",
        "sum",
        "clone",
    ]
)
_BUILTINS = {"len": len, "int": int, "tuple": tuple, "isinstance": isinstance}
# What may stand in the statements from the first call to the last; any other node may do anything.
_NODES = (
    *(ast.Assign, ast.Expr, ast.Return, ast.If, ast.Name, ast.Attribute, ast.Call, ast.Constant, ast.keyword),
    *(ast.Tuple, ast.List, ast.Starred, ast.Subscript, ast.Slice, ast.BinOp, ast.UnaryOp, ast.BoolOp),
    *(ast.Compare, ast.IfExp, ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def undisturbed(parent: nn.Module, parts: Collection[nn.Module]) -> bool:
    """Whether the parent's own forward calls all these modules, and writes to no tensor in between."""
    source = None if "forward" in vars(parent) else source_of(base_class(parent).forward)
    if source is None:
        return False
    lines = _span(source.definition.body, parent, source, set(parts))
    return bool(lines) and all(
        _harmless(node, parent, source, parts) for line in lines for node in ast.walk(line)
    )


def _span(body: list[ast.stmt], parent: nn.Module, source: Source, parts: set[nn.Module]) -> list[ast.stmt]:
    """The statements of the innermost block from the first call of a part to the last; [] if one is none."""
    called = [set(_called(line, parent, source)) & parts for line in body]
    for line, modules in zip(body, called, strict=True):
        if modules == parts and isinstance(line, ast.If):
            return _span(line.body, parent, source, parts) or [line]
    where = [i for i, modules in enumerate(called) if modules]
    return body[where[0] : where[-1] + 1] if set().union(*called) == parts else []


def _called(line: ast.stmt, parent: nn.Module, source: Source) -> Iterator[nn.Module]:
    for node in ast.walk(line):
        if isinstance(node, ast.Call) and is_path(node.func):
            target = resolved(node.func, parent, source.function)
            if isinstance(target, nn.Module):
                yield target


def _harmless(node: ast.AST, parent: nn.Module, source: Source, parts: Collection[nn.Module]) -> bool:
    if not isinstance(node, _NODES):
        return False
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        return isinstance(node.ctx, ast.Load)
    if not isinstance(node, ast.Call):
        return True
    target = resolved(node.func, parent, source.function) if is_path(node.func) else None
    if isinstance(target, nn.Module):
        return target in parts or _writes_nothing(target)
    if isinstance(node.func, ast.Name):
        return node.func.id in _BUILTINS and not isinstance(target, types.FunctionType)
    if target is not None:
        return activation_name(target) != "none"
    # A method of something that is not the module itself, nor one of its parts.
    return (
        isinstance(node.func, ast.Attribute)
        and node.func.attr in _METHODS
        and not _is_self(node.func, source)
    )


def _writes_nothing(module: Any) -> bool:
    """Of torch's layers and ours, unless they work in place."""
    is_known = type(module).__module__.startswith(("torch.nn.modules.", "sparseinfer.modules."))
    return (is_known or activation_name(module) != "none") and not getattr(module, "inplace", False)


def _is_self(path: ast.expr, source: Source) -> bool:
    """Whether the path begins at the module whose forward it is."""
    node: Any = path
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return isinstance(node, ast.Name) and node.id == source.function.__code__.co_varnames[0]
