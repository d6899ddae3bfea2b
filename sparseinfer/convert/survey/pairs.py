"""Rewrites the source of a method: `v = self.a(x)` and then `self.b(v, y)` become one call of both.

As in `rewriting.py`, no other code can see the result of the first call, whatever the input: v is a local
variable that is read nowhere else. Unlike there, the method need not be `forward`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Sequence
from types import FunctionType
from typing import Any

from torch import nn

from sparseinfer._source import Source, is_path, resolved, source_of
from sparseinfer.convert.survey.chains import base_class
from sparseinfer.convert.survey.rewriting import BLOCKS, CHAIN, CHAIN_IN_ORDER, NORMED_SUM, OPAQUE, reads
from sparseinfer.modules.normed import Whole

# What the new source calls.
ONE_AFTER_ANOTHER = "_sparseinfer_one_after_another"


class PairRewriter(ast.NodeTransformer):
    """Rewrites a copy of one method; `pairs(a, b)` says of two expressions that are called whether to."""

    def __init__(self, source: Source, pairs: Callable[[ast.expr, ast.expr], bool]) -> None:
        self._source, self._pairs = source, pairs
        self._reads = reads(source.definition)

    def visit(self, node: ast.AST) -> Any:
        own = node.name == self._source.definition.name if isinstance(node, ast.FunctionDef) else True
        if isinstance(node, OPAQUE) or not own:
            return node
        if isinstance(node, BLOCKS):
            self._merge(node.body)
            self._merge(getattr(node, "orelse", []))
        return self.generic_visit(node)

    def _merge(self, body: list[ast.stmt]) -> None:
        i = 0
        while i + 1 < len(body):
            if self._merges(body[i], body[i + 1]):
                del body[i]
            else:
                i += 1

    def _merges(self, first: ast.stmt, then: ast.stmt) -> bool:
        if not isinstance(first, ast.Assign) or not isinstance(then, (ast.Assign, ast.Return)):
            return False
        target, (a, b) = first.targets[0], (_call(first.value, 1), _call(then.value, 2))
        if a is None or b is None or len(first.targets) > 1 or not isinstance(target, ast.Name):
            return False
        given = [argument.id for argument in b.args if isinstance(argument, ast.Name)]
        name = target.id
        if len(given) < 2 or given[0] != name or given[1] == name or not all(map(self._is_local, given)):
            return False
        if self._reads[name] != 1 and not isinstance(then, ast.Return) and not _sets(then, name):
            return False
        if not self._pairs(a.func, b.func):
            return False
        arguments = [a.func, b.func, a.args[0], b.args[1]]
        then.value = ast.copy_location(
            ast.Call(ast.Name(ONE_AFTER_ANOTHER, ast.Load()), arguments, []), then.value or then
        )
        return True

    def _is_local(self, name: str) -> bool:
        code = self._source.function.__code__
        return name in code.co_varnames and name not in code.co_cellvars


def _call(node: ast.expr | None, arguments: int) -> ast.Call | None:
    """A call of a path with so many positional arguments and no others."""
    if not isinstance(node, ast.Call) or not is_path(node.func) or node.keywords:
        return None
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    return node if len(node.args) == arguments and not starred else None


def _sets(then: ast.Assign, name: str) -> bool:
    """Whether the statement is `name = ...`, so that nobody reads what was there."""
    return len(then.targets) == 1 and isinstance(then.targets[0], ast.Name) and then.targets[0].id == name


def methods_of(kind: type) -> dict[str, Any]:
    """The plain methods that the class and those it is derived from define, without `forward` and torch's."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("torch.") and base is not object:
            found |= {name: item for name, item in vars(base).items() if isinstance(item, FunctionType)}
    return {name: item for name, item in found.items() if name != "forward" and not name.startswith("__")}


def pairs_in(module: nn.Module, pairs: Callable[[Any, Any], bool]) -> frozenset[tuple[str, str, str]]:
    """(method, a, b) of each pair in the module's methods that `pairs`, of the objects, allows."""
    found = set()
    for name, method in methods_of(base_class(module)).items():
        source = source_of(method) if name not in vars(module) else None
        if source is None:
            continue

        def asked(a: ast.expr, b: ast.expr, name: str = name, source: Source = source) -> bool:
            first, second = (resolved(path, module, source.function) for path in (a, b))
            if not pairs(first, second):
                return False
            found.add((name, ast.unparse(a), ast.unparse(b)))
            return True

        PairRewriter(source, asked).visit(source.copy())
    return frozenset(found)


def paired(source: Source, name: str, allowed: Collection[tuple[str, str, str]]) -> ast.FunctionDef:
    """The method's definition with these pairs of calls rewritten."""
    rewriter = PairRewriter(source, lambda a, b: (name, ast.unparse(a), ast.unparse(b)) in allowed)
    definition: ast.FunctionDef = rewriter.visit(source.copy())
    return definition


def whole_of(definition: ast.FunctionDef) -> Whole | None:
    """What a forward that `rewriting.py` wrote is: one `chain` or `normed_sum` of its modules, or None."""
    arguments = definition.args
    names = [argument.arg for argument in arguments.args]
    lines = [line for line in definition.body if not _is_docstring(line)]
    if arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
        return None
    if len(lines) == 2 and isinstance(lines[0], ast.Assign) and isinstance(lines[1], ast.Return):
        target, given = lines[0].targets[0], lines[1].value
        if not isinstance(target, ast.Name) or not isinstance(given, ast.Name) or given.id != target.id:
            return None
    elif len(lines) != 1 or not isinstance(lines[0], ast.Return):
        return None
    call = lines[0].value
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or len(names) < 2:
        return None
    self, x, *rest = names
    parts = [*call.args, *(word.value for word in call.keywords)]
    if call.func.id == CHAIN and not rest:
        return _whole(self, parts[:1], None, _texts(*parts[1:]) == [x])
    if call.func.id == CHAIN_IN_ORDER and not rest:
        first, given, named, others = parts
        return _whole(self, [first, others], None, _texts(given, named) == [f"({x},)", "{}"])
    if call.func.id == NORMED_SUM and len(rest) == 1:
        steps, given, named, norm, other, _ = parts
        return _whole(self, [steps], norm, _texts(given, named, other) == [f"({x},)", "{}", *rest])
    return None


def _whole(self: str, steps: Sequence[ast.expr], norm: ast.expr | None, plain: bool) -> Whole | None:
    """`plain`: what is given to the steps are the arguments of the forward."""
    paths = [path for step in steps for path in (step.elts if isinstance(step, ast.Tuple) else [step])]
    names = [_module_name(path, self) for path in (*paths, *([norm] if norm is not None else []))]
    if not plain or None in names:
        return None
    known = [name for name in names if name is not None]
    return Whole(tuple(known[: len(paths)]), known[-1] if norm is not None else "")


def _module_name(path: ast.expr, self: str) -> str | None:
    is_own = isinstance(path, ast.Attribute) and isinstance(path.value, ast.Name) and path.value.id == self
    return path.attr if is_own and isinstance(path, ast.Attribute) else None


def _texts(*nodes: ast.expr) -> list[str]:
    return [ast.unparse(node) for node in nodes]


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
