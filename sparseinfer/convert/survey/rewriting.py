"""Rewrites the source of a forward: calls that pass their result straight on become one call of `chain`.

`self.act(self.fc(x))`, and `x = self.fc(x)` with `x = self.act(x)` as the next statement, become
`chain((self.fc, self.act), x)`; `x = self.act(x)` alone becomes a `take` of x. In these forms no other
code can see the result of the first call, whatever the input and control flow. `joins` decides whether two
calls join.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

from sparseinfer._source import Source, is_path

# What the new source calls; whoever compiles it binds these names to functions of `sparseinfer.modules`.
CHAIN, CHAIN_IN_ORDER, TAKE = "_sparseinfer_chain", "_sparseinfer_chain_in_order", "_sparseinfer_take"
_HELD = "_sparseinfer_held"

# Of the expressions that are called: whether the result of the first may be handed to the second by `chain`;
# with None, whether the first may write over its input, by `take`.
PathsJoin: TypeAlias = Callable[[ast.expr, "ast.expr | None"], bool]

_BLOCKS = (ast.FunctionDef, ast.If, ast.For, ast.While)
# Left as they are: functions of their own, and blocks in which an error may be caught, after which a variable
# could be read that a merged statement no longer sets.
_OPAQUE = (
    ast.Try,
    ast.With,
    getattr(ast, "TryStar", ast.Try),
    ast.Lambda,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


class Rewriter(ast.NodeTransformer):
    """Rewrites a copy of one forward; `chains` holds the paths of the callables of each chain."""

    def __init__(self, source: Source, joins: PathsJoin) -> None:
        self._source, self._joins = source, joins
        self._reads = _reads(source.definition)
        self._merged: set[ast.AST] = set()
        self.chains: list[list[ast.expr]] = []

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, _OPAQUE) or (isinstance(node, ast.FunctionDef) and not self._is_own(node)):
            return node
        if isinstance(node, _BLOCKS):
            self._merge(node.body)
            self._merge(getattr(node, "orelse", []))
        if isinstance(node, ast.Call):
            return self._chained(node)
        return self.generic_visit(node)

    def _is_own(self, node: ast.FunctionDef) -> bool:
        return node.name == self._source.definition.name

    def _merge(self, body: list[ast.stmt]) -> None:
        """Makes `v = b(a(...))` of `v = a(...)` with `v = b(v)` as the next statement, where a and b join."""
        i = 0
        while i + 1 < len(body):
            if self._merges(body[i], body[i + 1]):
                del body[i]
                i = max(i - 1, 0)
            else:
                i += 1
        body[:] = [line for statement in body for line in self._taken(statement)]

    def _taken(self, statement: ast.stmt) -> list[ast.stmt]:
        """Makes `held = [v]; del v; v = take(act, held)` of `v = act(v)`, where `joins` allows it.

        The list is then the only thing in this forward that holds the tensor, so `take` may find that nobody
        else does, and write over it.
        """
        if not isinstance(statement, (ast.Assign, ast.Return)) or not _is_step(statement.value):
            return [statement]
        call: Any = statement.value
        (given,) = call.args
        if not isinstance(given, ast.Name) or not self._is_local(given.id):
            return [statement]
        if not isinstance(statement, ast.Return) and not _assigns(statement, given.id):
            return [statement]
        if not self._joins(call.func, None):
            return [statement]
        holds = ast.Assign([ast.Name(_HELD, ast.Store())], ast.List([given], ast.Load()))
        lets_go = ast.Delete([ast.Name(given.id, ast.Del())])
        statement.value = ast.Call(ast.Name(TAKE, ast.Load()), [call.func, ast.Name(_HELD, ast.Load())], [])
        return [ast.copy_location(line, statement) for line in (holds, lets_go, statement)]

    def _is_local(self, name: str) -> bool:
        code = self._source.function.__code__
        return name in code.co_varnames and name not in code.co_cellvars

    def _merges(self, first: ast.stmt, then: ast.stmt) -> bool:
        """Puts the call of the first statement in the place of its variable in the second, if it may.

        `v = a(...)` and `w = c(b(v))`: v is read nowhere else, or `w` is `v` itself.
        """
        if not isinstance(first, ast.Assign) or len(first.targets) != 1:
            return False
        (target,) = first.targets
        if not isinstance(target, ast.Name) or not _is_call(first.value):
            return False
        name = target.id
        if not self._is_local(name):
            return False
        if not isinstance(then, (ast.Assign, ast.Return)) or not _is_call(then.value):
            return False
        inner: Any = then.value
        while _is_call(inner.args[0]) if _is_step(inner) else False:
            inner = inner.args[0]
        if not _is_step(inner) or not isinstance(inner.args[0], ast.Name) or inner.args[0].id != name:
            return False
        over = isinstance(then, ast.Return) or _assigns(then, name)
        if not over and self._reads[name] != 1:
            return False  # somebody reads it later
        if _reads(then)[name] != 1:
            return False
        before: Any = first.value
        if not self._joins(before.func, inner.func):
            return False
        inner.args[0] = before
        self._merged.add(inner)
        return True

    def _chained(self, node: ast.Call) -> Any:
        """One call in the place of nested ones, as many as join from the outermost on."""
        steps = [node]
        while _is_step(steps[-1]) and _is_call(steps[-1].args[0]):
            inner: Any = steps[-1].args[0]
            if not self._joins(inner.func, steps[-1].func):
                break
            steps.append(inner)
        if len(steps) == 1:
            return self.generic_visit(node)
        steps.reverse()
        paths = [step.func for step in steps]
        self.chains.append(paths)
        call = (_in_order if self._merged & set(steps) else _nested)(paths, steps[0])
        return self.generic_visit(ast.copy_location(call, node))


def _nested(paths: list[ast.expr], first: ast.Call) -> ast.Call:
    """`chain((a, b), x)` for `b(a(x))`: there too a and b are looked up before x."""
    steps = ast.Tuple(paths, ast.Load())
    return ast.Call(ast.Name(CHAIN, ast.Load()), [steps, *first.args], first.keywords)


def _in_order(paths: list[ast.expr], first: ast.Call) -> ast.Call:
    """`chain_in_order(a, (x,), {}, (b,))` for `v = a(x)` and then `b(v)`: b is looked up last."""
    named = ast.Dict(
        [None if word.arg is None else ast.Constant(word.arg) for word in first.keywords],
        [word.value for word in first.keywords],
    )
    given = [paths[0], ast.Tuple(first.args, ast.Load()), named, ast.Tuple(paths[1:], ast.Load())]
    return ast.Call(ast.Name(CHAIN_IN_ORDER, ast.Load()), given, [])


def _reads(node: ast.AST) -> Counter[str]:
    """How often each name is read, `x += 1` included."""
    reads: Counter[str] = Counter()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Store):
            reads[inner.id] += 1
        elif isinstance(inner, ast.AugAssign) and isinstance(inner.target, ast.Name):
            reads[inner.target.id] += 1
    return reads


def _assigns(statement: ast.Assign, name: str) -> bool:
    """Whether it is `name = ...` and nothing else."""
    (target, *others) = statement.targets
    return not others and isinstance(target, ast.Name) and target.id == name


def _is_call(node: Any) -> bool:
    return isinstance(node, ast.Call) and is_path(node.func)


def _is_step(node: Any) -> bool:
    """A call of one positional argument."""
    return (
        _is_call(node)
        and len(node.args) == 1
        and not node.keywords
        and not isinstance(node.args[0], ast.Starred)
    )
