"""Rewrites the source of a forward: calls that pass their result straight on become one call of `chain`.

`self.act(self.fc(x))`, and `x = self.fc(x)` with `x = self.act(x)` as the next statement, become
`chain((self.fc, self.act), x)`; `self.norm(self.fc(x) + y)`, or the same in two statements, becomes a
`normed_sum`; `x = self.act(x)` alone becomes a `take` of x. In these forms no other code can see the result
of the first call, whatever the input and control flow. `joins` decides whether two calls join.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

from sparseinfer._source import Source, is_path

# What the new source calls; whoever compiles it binds these names to functions of `sparseinfer.modules`.
CHAIN, CHAIN_IN_ORDER, TAKE = "_sparseinfer_chain", "_sparseinfer_chain_in_order", "_sparseinfer_take"
NORMED_SUM = "_sparseinfer_normed_sum"
_HELD = "_sparseinfer_held"

# Of the expressions that are called: whether the result of the first may be handed to the second by `chain`;
# with None, whether the first may write over its input, by `take`; with a call (`_of_sum`), whether what it
# calls may be applied to a sum with the result, by `normed_sum`.
PathsJoin: TypeAlias = Callable[[ast.expr, "ast.expr | None"], bool]

BLOCKS = (ast.FunctionDef, ast.If, ast.For, ast.While)
# Left as they are: functions of their own, and blocks in which an error may be caught, after which a variable
# could be read that a merged statement no longer sets.
OPAQUE = (
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
        self._reads = reads(source.definition)
        self._merged: set[ast.AST] = set()
        self.chains: list[list[ast.expr]] = []

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, OPAQUE) or (isinstance(node, ast.FunctionDef) and not self._is_own(node)):
            return node
        if isinstance(node, BLOCKS):
            self._merge(node.body)
            self._merge(getattr(node, "orelse", []))
        if isinstance(node, ast.Call):
            return self._normed(node) or self._chained(node)
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
        if not _is_step(inner):
            return False
        given, is_sum = inner.args[0], isinstance(inner.args[0], ast.BinOp)
        terms = self._terms(given) if inner is then.value else None
        if not (given.id == name if isinstance(given, ast.Name) else terms and name in _names(terms)):
            return False
        over = isinstance(then, ast.Return) or _assigns(then, name)
        if not over and self._reads[name] != 1:
            return False  # somebody reads it later
        if reads(then)[name] != 1:
            return False
        before: Any = first.value
        if self._is_taken(before):
            return False
        if not self._joins(before.func, _of_sum(inner.func) if is_sum else inner.func):
            return False
        if is_sum:
            left, right = (before if _names((term,)) == [name] else term for term in terms or ())
            inner.args[0] = ast.BinOp(left, ast.Add(), right)
        else:
            inner.args[0] = before
            self._merged.add(inner)
        return True

    def _terms(self, node: ast.expr) -> tuple[ast.expr, ast.expr] | None:
        """Of `call + name` or `name + call`, the name a local variable: both; of `name + name`, too."""
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
            return None
        terms = (node.left, node.right)
        names = [term for term in terms if isinstance(term, ast.Name)]
        others = [term for term in terms if _is_call(term)]
        if not names or len(names) + len(others) < 2 or not all(self._is_local(n.id) for n in names):
            return None
        return terms

    def _normed(self, node: ast.Call) -> Any:
        """`normed_sum((a, b), (x,), {}, norm, y)` for `norm(b(a(x)) + y)`; None where that does not join."""
        terms = self._terms(node.args[0]) if _is_step(node) else None
        calls = [term for term in terms or () if _is_call(term)]
        if not calls or not self._joins(calls[0].func, _of_sum(node.func)):  # type: ignore[attr-defined]
            return None
        steps = self._steps(calls[0])
        (other,) = [term for term in terms or () if term is not calls[0]]
        paths = [step.func for step in steps]
        self.chains.append([*paths, node.func])
        first = ast.Tuple(steps[0].args, ast.Load())
        given = [ast.Tuple(paths, ast.Load()), first, _named(steps[0]), node.func, other]
        is_first = ast.keyword("residual_first", ast.Constant(terms is not None and other is terms[0]))
        call = ast.Call(ast.Name(NORMED_SUM, ast.Load()), given, [is_first])
        return self.generic_visit(ast.copy_location(call, node))

    def _steps(self, node: Any) -> list[ast.Call]:
        """Nested calls, as many as join from the outermost on, the innermost first."""
        steps = [node]
        while _is_step(steps[-1]) and _is_call(steps[-1].args[0]):
            inner: Any = steps[-1].args[0]
            if self._is_taken(inner) or not self._joins(inner.func, steps[-1].func):
                break
            steps.append(inner)
        return steps[::-1]

    def _is_taken(self, call: ast.Call) -> bool:
        """Whether it is an activation that `take` may compute in place, so that no chain begins with it."""
        return not (_is_step(call) and _is_call(call.args[0])) and self._joins(call.func, None)

    def _chained(self, node: ast.Call) -> Any:
        """One call in the place of nested ones, as many as join from the outermost on."""
        steps = self._steps(node)
        if len(steps) == 1:
            return self.generic_visit(node)
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
    given = [paths[0], ast.Tuple(first.args, ast.Load()), _named(first), ast.Tuple(paths[1:], ast.Load())]
    return ast.Call(ast.Name(CHAIN_IN_ORDER, ast.Load()), given, [])


def _named(call: ast.Call) -> ast.Dict:
    """The keyword arguments of a call."""
    return ast.Dict(
        [None if word.arg is None else ast.Constant(word.arg) for word in call.keywords],
        [word.value for word in call.keywords],
    )


def _of_sum(path: ast.expr) -> ast.Call:
    """How `PathsJoin` is asked about what is called with a sum."""
    return ast.Call(path, [ast.Name("sum", ast.Load())], [])


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _names(terms: tuple[ast.expr, ...]) -> list[str]:
    return [term.id for term in terms if isinstance(term, ast.Name)]


def reads(node: ast.AST) -> Counter[str]:
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
