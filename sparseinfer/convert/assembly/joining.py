"""Gives modules a forward that calls a layer and the activation or batch norm after it as one chain.

`join_` gives a module a subclass of its own whose forward is rewritten by `survey/rewriting.py`. The calls of
`chain` and `take` in it return what the original calls return, and check at every call whether a faster way
is allowed: results do not depend on what the survey found (`survey/chains.py`).
"""

from __future__ import annotations

import ast
import functools
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from sparseinfer._source import source_of
from sparseinfer.convert.survey.chains import (
    BASE,
    JoinedForward,
    Joins,
    Pair,
    base_class,
    chains_in,
    definition_of,
    may_be_derived,
)
from sparseinfer.convert.survey.rewriting import CHAIN, CHAIN_IN_ORDER, TAKE
from sparseinfer.modules.activations import activation_name
from sparseinfer.modules.chain import CHAINING, chain, chain_in_order
from sparseinfer.modules.owned import may_take, take
from sparseinfer.modules.regions import Holder

# The attributes of a class made here that names the joined calls, and of a module that holds its region.
_PAIRS, _HOLDER = "_sparseinfer_pairs", "_sparseinfer_region"


def join_all_(model: nn.Module, *, fuse: bool) -> None:
    """Chain the calls of layers and what follows them in every module of a converted model.

    Without `fuse` only folded batch norms are chained.
    """

    def joins(first: Any, then: Any) -> bool:
        if then is None:
            return fuse and may_take(first)
        if type(first) in CHAINING:
            return first.__dict__.get("batch_norm") is then or (fuse and activation_name(then) != "none")
        return fuse and type(first) in (nn.BatchNorm1d, nn.BatchNorm2d) and activation_name(then) != "none"

    for module in model.modules():
        join_(module, joins)


def join_(module: nn.Module, joins: Joins) -> None:
    """Give the module a class whose forward chains what `joins` allows, if there is anything to chain."""
    chains = chains_in(module, joins)
    if chains.steps or chains.forward.pairs:
        base: Any = base_class(module)
        module.__class__ = _class(base, chains.forward)


def hold_region_(module: nn.Module) -> Holder | None:
    """Give the module a class whose forward runs as a region where it can; what holds the region.

    None: the module cannot have a class of its own.
    """
    if "forward" in vars(module) or not may_be_derived(module, told=False):
        return None
    base: Any = base_class(module)
    pairs: frozenset[Pair] | None = getattr(type(module), _PAIRS, None)
    module.__class__ = _class(base, None if pairs is None else JoinedForward(pairs), region=True)
    holder = vars(module)[_HOLDER] = Holder()
    return holder


def part_(module: nn.Module) -> None:
    """Undo `join_` and `hold_region_`."""
    vars(module).pop(_HOLDER, None)
    if type(module) is not base_class(module):
        module.__class__ = base_class(module)


def region_of(module: nn.Module) -> Holder | None:
    """What holds the module's region, if it has one."""
    return vars(module).get(_HOLDER)


def leave_region_(module: nn.Module) -> None:
    """Undo `hold_region_` alone."""
    base: Any = base_class(module)
    pairs: frozenset[Pair] | None = getattr(type(module), _PAIRS, None)
    vars(module).pop(_HOLDER, None)
    module.__class__ = base if pairs is None else _class(base, JoinedForward(pairs))


@lru_cache(maxsize=1024)
def _class(base: Any, joined: JoinedForward | None, region: bool = False) -> Any:
    """A class that passes for `base`, with this forward; `base` itself where that has no source.

    joined   None: the forward of `base`
    region   a forward that runs as a region where it can
    """
    forward: Any = _sequential_forward
    if joined is None:
        forward = base.forward
    elif base.forward is not nn.Sequential.forward:
        source = source_of(base.forward)
        if source is None:
            return base
        definition = ast.fix_missing_locations(definition_of(joined, source))
        forward = source.compiled(definition, {CHAIN: chain, CHAIN_IN_ORDER: chain_in_order, TAKE: take})
    if region:
        forward = _region_forward(forward)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        how, args, *rest = base.__reduce_ex__(self, protocol)
        if getattr(how, "__name__", "") == "__newobj__" and args[0] is kind:
            pairs = None if joined is None else joined.pairs
            how, before = (_made_with_region, (base, pairs)) if region else (_made, (base, pairs))
            return how, (*before, *args[1:]), *rest
        # In an older protocol, which names the class that others know.
        return how, tuple(base if item is kind else item for item in args), *rest

    names: dict[str, Any] = {"forward": forward, "__reduce_ex__": reduce, BASE: base}
    names[_PAIRS] = None if joined is None else joined.pairs
    names |= {"__module__": base.__module__, "__doc__": base.__doc__, "__qualname__": base.__qualname__}
    # A base that is given later is not told of the class.
    kind: Any = type(base.__name__, (_Underived,), names)
    kind.__bases__ = (base,)
    return kind


class _Underived(nn.Module):
    """The base of a class for a moment."""


def _made(base: Any, pairs: frozenset[Pair], *args: Any) -> nn.Module:
    """For copies and pickles, which know no class that was made here."""
    kind = _class(base, JoinedForward(pairs))
    made: nn.Module = kind.__new__(kind, *args)
    return made


def _made_with_region(base: Any, pairs: frozenset[Pair] | None, *args: Any) -> nn.Module:
    kind = _class(base, None if pairs is None else JoinedForward(pairs), region=True)
    made: nn.Module = kind.__new__(kind, *args)
    return made


def _region_forward(forward: Any) -> Any:
    @functools.wraps(forward)
    def region_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        holder = region_of(self)
        return forward(self, *args, **kwargs) if holder is None else holder.call(self, forward, args, kwargs)

    return region_forward


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
