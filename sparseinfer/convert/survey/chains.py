"""Where a layer's result goes straight into an activation or a batch norm: read in the source of `forward`.

`self.act(self.fc(x))`, and `x = self.fc(x)` with `x = self.act(x)` as the next statement, are calls whose
result nobody else can see, whatever the input and the way to them. `join_` gives a module a class of its own,
with a forward in which such calls read `chain((self.fc, self.act), x)`, and `x = self.act(x)` alone becomes
a `take` of x. Both do what the plain calls do, so nothing depends on what was found here; they only do it
faster where they may, which they ask at every call.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from sparseinfer._source import Source, is_path, resolved, source_of
from sparseinfer.modules.chain import CHAINING, chain, chain_in_order
from sparseinfer.modules.owned import may_take, take

# Names in a forward whose calls are joined, (the first, what is called with its result).
_Pairs: TypeAlias = "frozenset[tuple[str, str]]"

# Whether the result of the first may be handed to the second by `chain`; with None, whether the first is an
# activation that may write over its input if that is its alone, by `take`.
Joins = Callable[[Any, Any], bool]

_CHAIN, _CHAIN_IN_ORDER = "_sparseinfer_chain", "_sparseinfer_chain_in_order"
_TAKE, _HELD = "_sparseinfer_take", "_sparseinfer_held"
_BASE = "_sparseinfer_joined"
# How a class may be told of those made of it, and how its instances may be copied otherwise.
_OF_ITS_OWN = {"__init_subclass__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"}
_ANY = ("", "")  # of nn.Sequential, which looks at its steps at every call


def chains(module: nn.Module, joins: Joins) -> list[tuple[Any, ...]]:
    """(layer, what follows, ...) of each place in the module's own forward, in its order."""
    return _found(module, joins)[0]


def join_(module: nn.Module, joins: Joins) -> None:
    """Give the module a class whose forward chains what `joins` allows; nothing where there is nothing."""
    found, pairs = _found(module, joins)
    if found or pairs:
        base: Any = base_class(module)
        module.__class__ = _class(base, pairs)


def part_(module: nn.Module) -> None:
    """Undo `join_`."""
    if type(module) is not base_class(module):
        module.__class__ = base_class(module)


def base_class(module: nn.Module) -> type[nn.Module]:
    """Its class before `join_`."""
    base: type[nn.Module] = getattr(type(module), _BASE, type(module))
    return base


def _found(module: nn.Module, joins: Joins) -> tuple[list[tuple[Any, ...]], _Pairs]:
    """The chains, and which names in the source of forward make them."""
    if "forward" in vars(module) or not _may_be_derived(module):
        return [], frozenset()
    forward = base_class(module).forward
    if forward is nn.Sequential.forward:
        kind: Any = type(module)
        if kind.__iter__ is not nn.Sequential.__iter__:
            return [], frozenset()
        steps = list(module._modules.values())
        takes = any(joins(step, None) for step in steps)
        return list(_runs(steps, joins)), frozenset({_ANY}) if takes else frozenset()
    source = source_of(forward)
    if source is None:
        return [], frozenset()
    found: list[tuple[Any, ...]] = []
    pairs: set[tuple[str, str]] = set()

    def join(first: ast.expr, then: ast.expr | None) -> bool:
        a = resolved(first, module, source.function)
        b = None if then is None else resolved(then, module, source.function)
        if a is None or (b is None and then is not None) or not joins(a, b):
            return False
        pairs.add(_pair(first, then))
        return True

    joiner = _Joiner(source, join)
    joiner.visit(source.copy())
    for paths in joiner.chains:
        found.append(tuple(resolved(path, module, source.function) for path in paths))
    return found, frozenset(pairs)


def _may_be_derived(module: nn.Module) -> bool:
    """Whether a class made of the module's is copied as `_class` says, and changes nothing elsewhere."""
    base = base_class(module)
    if isinstance(module, (fx.GraphModule, torch.jit.ScriptModule)) or type(base) is not type:
        return False
    return not any(_OF_ITS_OWN & vars(kind).keys() for kind in base.__mro__[:-1])


@lru_cache(maxsize=1024)
def _class(base: Any, pairs: _Pairs) -> Any:
    """A class that passes for `base`, whose forward chains these names; `base` itself without its source."""
    forward: Any = _sequential_forward
    if base.forward is not nn.Sequential.forward:
        source = source_of(base.forward)
        if source is None:
            return base
        joiner = _Joiner(source, lambda first, then: _pair(first, then) in pairs)
        definition = ast.fix_missing_locations(joiner.visit(source.copy()))
        forward = source.compiled(definition, {_CHAIN: chain, _CHAIN_IN_ORDER: chain_in_order, _TAKE: take})

    def reduce(self: nn.Module, protocol: Any) -> Any:
        how, args, *rest = base.__reduce_ex__(self, protocol)
        if getattr(how, "__name__", "") == "__newobj__" and args[0] is kind:
            return _made, (base, pairs, *args[1:]), *rest
        # In an older protocol, which names the class that others know.
        return how, tuple(base if item is kind else item for item in args), *rest

    names = {"forward": forward, "__reduce_ex__": reduce, _BASE: base}
    kind: Any = type(
        base.__name__, (base,), {**names, "__module__": base.__module__, "__doc__": base.__doc__}
    )
    kind.__qualname__ = base.__qualname__
    return kind


def _made(base: Any, pairs: _Pairs, *args: Any) -> nn.Module:
    """For copies and pickles, which know no class that was made here."""
    kind = _class(base, pairs)
    made: nn.Module = kind.__new__(kind, *args)
    return made


def _runs(steps: Sequence[Any], joins: Joins) -> Iterator[tuple[Any, ...]]:
    """The longest runs of neighbours that join."""
    start = 0
    while start < len(steps):
        stop = start + 1
        while stop < len(steps) and joins(steps[stop - 1], steps[stop]):
            stop += 1
        if stop - start > 1:
            yield tuple(steps[start:stop])
        start = stop


def _pair(first: ast.expr, then: ast.expr | None) -> tuple[str, str]:
    return ast.unparse(first), "" if then is None else ast.unparse(then)


def _sequential_forward(self: nn.Sequential, input: Any) -> Any:
    steps = list(self._modules.values())
    held, i = [input], 0
    del input
    while i < len(steps):
        step, stop = steps[i], i + 1
        if type(step) in CHAINING:
            # A layer that takes others in is handed the two that follow; `chain` looks what they are.
            while stop < min(len(steps), i + 3) and type(steps[stop]) not in CHAINING:
                stop += 1
            held.append(chain(tuple(steps[i:stop]), held.pop()))
        elif may_take(step):
            held.append(take(step, held))
        else:
            held.append(step(held.pop()))
        i = stop
    return held.pop()


_BLOCKS = (ast.FunctionDef, ast.If, ast.For, ast.While)
# Functions of their own, and what may go on after an error, and see what a statement left behind.
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


class _Joiner(ast.NodeTransformer):
    """Rewrites one forward; `chains` are the paths of what was joined."""

    def __init__(self, source: Source, joins: Callable[[ast.expr, ast.expr | None], bool]) -> None:
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
        """`v = a(...)` and then `v = b(v)`: `v = b(a(...))`, where the two join."""
        i = 0
        while i + 1 < len(body):
            if self._merges(body[i], body[i + 1]):
                del body[i]
                i = max(i - 1, 0)
            else:
                i += 1
        body[:] = [line for statement in body for line in self._taken(statement)]

    def _taken(self, statement: ast.stmt) -> list[ast.stmt]:
        """`v = act(v)`: v is let go of first, so that the activation may find itself alone with it."""
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
        statement.value = ast.Call(ast.Name(_TAKE, ast.Load()), [call.func, ast.Name(_HELD, ast.Load())], [])
        return [ast.copy_location(line, statement) for line in (holds, lets_go, statement)]

    def _is_local(self, name: str) -> bool:
        code = self._source.function.__code__
        return name in code.co_varnames and name not in code.co_cellvars

    def _merges(self, first: ast.stmt, then: ast.stmt) -> bool:
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
    """What nested calls are called by is looked up before what the first is given."""
    steps = ast.Tuple(paths, ast.Load())
    return ast.Call(ast.Name(_CHAIN, ast.Load()), [steps, *first.args], first.keywords)


def _in_order(paths: list[ast.expr], first: ast.Call) -> ast.Call:
    """What a later statement calls is looked up after it."""
    named = ast.Dict(
        [None if word.arg is None else ast.Constant(word.arg) for word in first.keywords],
        [word.value for word in first.keywords],
    )
    given = [paths[0], ast.Tuple(first.args, ast.Load()), named, ast.Tuple(paths[1:], ast.Load())]
    return ast.Call(ast.Name(_CHAIN_IN_ORDER, ast.Load()), given, [])


def _reads(node: ast.AST) -> Counter[str]:
    """How often each name is read, `x += 1` included."""
    found: Counter[str] = Counter()
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Store):
            found[each.id] += 1
        elif isinstance(each, ast.AugAssign) and isinstance(each.target, ast.Name):
            found[each.target.id] += 1
    return found


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
