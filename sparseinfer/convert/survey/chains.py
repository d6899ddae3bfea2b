"""Finds in the source of `forward` where a layer's result goes straight into an activation or batch norm.

This is a property of the source, so it holds for every input. By itself it changes no computation:
`assembly/joining.py` merges such calls into one call, which checks each time whether it may fuse.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from sparseinfer._source import Source, resolved, source_of
from sparseinfer.convert.survey.rewriting import PathsJoin, Rewriter

# The text of two expressions in a forward whose calls are joined: the first, and what is called with its
# result; "" where the first takes over its input.
Pair: TypeAlias = "tuple[str, str]"


@dataclass(frozen=True)
class OfSum:
    """What is called with a sum of a result and something else."""

    called: Any


# Of two objects that are called: whether the result of the first may be handed to the second by `chain`, or,
# to the one in an `OfSum`, by `normed_sum`; with None, whether the first is an activation that may write over
# its input if that is its alone, by `take`.
Joins = Callable[[Any, Any], bool]

# The attribute of a class made by `assembly/joining.py` that names the class it was made of.
BASE = "_sparseinfer_joined"
# How a class may be told of those made of it, and how its instances may be copied otherwise.
_IS_TOLD = "__init_subclass__"
_COPIED_OTHERWISE = {"__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"}
_IN_SEQUENTIAL: Pair = ("", "")  # nn.Sequential looks at its steps at every call


@dataclass(frozen=True)
class JoinedForward:
    """A forward in which these pairs (and uses of `take`) are joined; equal if the pairs are equal.

    `definition` is its source, if it has been written; `definition_of` writes it. `methods` are the pairs of
    calls that are joined in other methods (`pairs.py`); `attends`: calls of attention are `attended`.
    """

    pairs: frozenset[Pair] = frozenset()
    methods: frozenset[tuple[str, str, str]] = frozenset()
    attends: bool = False
    definition: ast.FunctionDef | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Chains:
    """The chains in one module's forward: (layer, what follows, ...) of each place, in order."""

    steps: tuple[tuple[Any, ...], ...] = ()
    forward: JoinedForward = JoinedForward()


def chains_in(module: nn.Module, joins: Joins) -> Chains:
    """The chains in the module's own forward; none if its source cannot be read or replaced."""
    if "forward" in vars(module) or not may_be_derived(module):
        return Chains()
    forward = base_class(module).forward
    if forward is nn.Sequential.forward:
        return _chains_in_sequential(module, joins)
    source = source_of(forward)
    if source is None:
        return Chains()
    function = source.function

    def join(first: ast.expr, then: ast.expr | None) -> bool:
        a = resolved(first, module, function)
        path = then.func if isinstance(then, ast.Call) else then
        b = None if path is None else resolved(path, module, function)
        if b is not None and path is not then:
            b = OfSum(b)
        return a is not None and (b is not None or then is None) and joins(a, b)

    rewritten = _rewritten(source, join)
    steps = (tuple(resolved(path, module, function) for path in paths) for paths in rewritten.chains)
    return Chains(tuple(steps), rewritten.forward)


@dataclass(frozen=True)
class _Rewritten:
    """A forward whose rewriter got these answers to its questions, in order; it asks nothing else."""

    answers: tuple[tuple[ast.expr, ast.expr | None, bool], ...]
    chains: Sequence[Sequence[ast.expr]]
    forward: JoinedForward


def _rewritten(source: Source, join: PathsJoin) -> _Rewritten:
    """The source with the calls joined that `join` allows; written once for modules of the same answers."""
    known = _rewritten_before(source)
    for rewritten in known:
        if all(join(first, then) == answer for first, then, answer in rewritten.answers):
            return rewritten
    answers: list[tuple[ast.expr, ast.expr | None, bool]] = []

    def answered(first: ast.expr, then: ast.expr | None) -> bool:
        answers.append((first, then, join(first, then)))
        return answers[-1][2]

    rewriter = Rewriter(source, answered)
    definition = rewriter.visit(source.copy())
    pairs = frozenset(_pair(first, then) for first, then, answer in answers if answer)
    known.append(_Rewritten(tuple(answers), rewriter.chains, JoinedForward(pairs, definition=definition)))
    return known[-1]


@lru_cache(maxsize=1024)
def _rewritten_before(source: Source) -> list[_Rewritten]:
    return []


def definition_of(forward: JoinedForward, source: Source) -> ast.FunctionDef:
    """The source's definition with these pairs joined."""
    if forward.definition is not None:
        return forward.definition
    rewriter = Rewriter(source, lambda first, then: _pair(first, then) in forward.pairs)
    definition: ast.FunctionDef = rewriter.visit(source.copy())
    return definition


def base_class(module: nn.Module) -> type[nn.Module]:
    """The module's class before `assembly/joining.py` replaced it."""
    base: type[nn.Module] = getattr(type(module), BASE, type(module))
    return base


def _pair(first: ast.expr, then: ast.expr | None) -> Pair:
    return ast.unparse(first), "" if then is None else ast.unparse(then)


def _chains_in_sequential(module: nn.Module, joins: Joins) -> Chains:
    kind: Any = type(module)
    if kind.__iter__ is not nn.Sequential.__iter__:
        return Chains()
    steps = list(module._modules.values())
    takes = any(joins(step, None) for step in steps)
    pairs = frozenset({_IN_SEQUENTIAL} if takes else ())
    return Chains(tuple(_runs(steps, joins)), JoinedForward(pairs))


def may_be_derived(module: nn.Module, *, told: bool = True) -> bool:
    """Whether a class derived from the module's is copied and pickled as usual, and nobody learns of it.

    told   whether a class that asks for it is told of those derived from it
    """
    base = base_class(module)
    if isinstance(module, (fx.GraphModule, torch.jit.ScriptModule)) or type(base) is not type:
        return False
    if told and is_told(base):
        return False
    return not any(_COPIED_OTHERWISE & vars(kind).keys() for kind in base.__mro__[:-1])


def is_told(base: type) -> bool:
    """Whether a class learns of those derived from it."""
    return any(_IS_TOLD in vars(kind) for kind in base.__mro__[:-1])


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
