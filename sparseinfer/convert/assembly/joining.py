"""Gives modules a forward that calls a layer and the activation or batch norm after it as one chain.

`join_` gives a module a subclass of its own whose forward is rewritten by `survey/rewriting.py`. The calls of
`chain` and `take` in it return what the original calls return, and check at every call whether a faster way
is allowed: results do not depend on what the survey found (`survey/chains.py`).
"""

from __future__ import annotations

import ast
import copy
import functools
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from sparseinfer._source import Source, source_of
from sparseinfer.convert.survey.chains import (
    BASE,
    JoinedForward,
    Joins,
    OfSum,
    Pair,
    base_class,
    chains_in,
    definition_of,
    is_told,
    may_be_derived,
)
from sparseinfer.convert.survey.pairs import ONE_AFTER_ANOTHER, methods_of, paired, pairs_in, whole_of
from sparseinfer.convert.survey.rewriting import CHAIN, CHAIN_IN_ORDER, NORMED_SUM, TAKE
from sparseinfer.modules.activations import activation_name
from sparseinfer.modules.attended import ATTENDED, Attended, attended
from sparseinfer.modules.chain import CHAINING, chain, chain_in_order
from sparseinfer.modules.linear import SparseLinear
from sparseinfer.modules.normed import WHOLE, normed_sum, one_after_another
from sparseinfer.modules.owned import may_take, take
from sparseinfer.modules.products import passes_on
from sparseinfer.modules.regions import Holder

# On a class made here: what it was made for, None if its forward is that of its base; and on a module, what
# holds its region.
_JOINED, _HOLDER = "_sparseinfer_joined_forward", "_sparseinfer_region"

_BOUND: dict[str, object] = {
    CHAIN: chain,
    CHAIN_IN_ORDER: chain_in_order,
    NORMED_SUM: normed_sum,
    TAKE: take,
    ONE_AFTER_ANOTHER: one_after_another,
    ATTENDED: attended,
}


def join_all_(model: nn.Module, *, fuse: bool) -> None:
    """Chain the calls of layers and what follows them in every module of a converted model.

    Without `fuse` only folded batch norms are chained.
    """

    def joins(first: Any, then: Any) -> bool:
        if then is None:
            return fuse and may_take(first)
        between = passes_on(first) or activation_name(first) != "none"
        if isinstance(then, OfSum):
            return fuse and type(then.called) is nn.LayerNorm and (type(first) is SparseLinear or between)
        if passes_on(then) and (type(first) is SparseLinear or between):
            return fuse
        if type(then) is SparseLinear and between:
            return fuse
        if type(first) in CHAINING:
            return first.__dict__.get("batch_norm") is then or (fuse and activation_name(then) != "none")
        return fuse and type(first) in (nn.BatchNorm1d, nn.BatchNorm2d) and activation_name(then) != "none"

    for module in model.modules():
        join_(module, joins)
    if fuse:
        for module in model.modules():
            _join_methods_(module)
            _join_attention_(module)


def join_(module: nn.Module, joins: Joins) -> None:
    """Give the module a class whose forward chains what `joins` allows, if there is anything to chain."""
    chains = chains_in(module, joins)
    if chains.steps or chains.forward.pairs:
        base: Any = base_class(module)
        module.__class__ = _class(base, chains.forward, False)


def _join_methods_(module: nn.Module) -> None:
    """Join calls of two modules that `one_after_another` may run as one, in methods beside `forward`."""
    if not any(hasattr(type(child), WHOLE) for child in module.children()):
        return
    if not may_be_derived(module, told=False):
        return
    methods = pairs_in(module, lambda a, b: hasattr(type(a), WHOLE) and hasattr(type(b), WHOLE))
    if methods:
        base: Any = base_class(module)
        forward = _joined(module) or JoinedForward()
        module.__class__ = _class(base, replace(forward, methods=methods), False)


def _join_attention_(module: nn.Module) -> None:
    """Let calls of torch's attention in the module's forward be `attended`."""
    if "forward" in vars(module) or not may_be_derived(module, told=False):
        return
    base: Any = base_class(module)
    source = source_of(base.forward)
    if source is not None and _attended(source, source.copy()) is not None:
        joined = replace(_joined(module) or JoinedForward(), attends=True)
        module.__class__ = _class(base, joined, False)


def _attended(source: Source, definition: ast.FunctionDef) -> ast.FunctionDef | None:
    """The definition with calls of attention rewritten; None: it has none."""
    names = [argument.arg for argument in (*definition.args.posonlyargs, *definition.args.args)]
    rewriter = Attended(source.function, names[0] if names else "")
    rewritten: ast.FunctionDef = rewriter.visit(definition)
    return rewritten if rewriter.found else None


def hold_region_(module: nn.Module) -> Holder | None:
    """Give the module a class whose forward runs as a region where it can; what holds the region.

    None: the module cannot have a class of its own.
    """
    if "forward" in vars(module) or not may_be_derived(module, told=False):
        return None
    base: Any = base_class(module)
    module.__class__ = _class(base, _joined(module), True)
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
    joined = _joined(module)
    vars(module).pop(_HOLDER, None)
    module.__class__ = base if joined is None else _class(base, joined, False)


def _joined(module: nn.Module) -> JoinedForward | None:
    """What the module's class was made for."""
    return getattr(type(module), _JOINED, None)


@lru_cache(maxsize=1024)
def _class(base: Any, joined: JoinedForward | None, region: bool) -> Any:
    """A class that passes for `base`, with this forward; `base` itself where that has no source.

    joined   None: the forward of `base`
    region   a forward that runs as a region where it can
    """
    names: dict[str, Any] = {BASE: base, _JOINED: joined}
    if joined is not None:
        written = _written(base, joined)
        if written is None:
            return base
        names |= written
    if region:
        names["forward"] = _region_forward(names.get("forward", base.forward))

    def reduce(self: nn.Module, protocol: Any) -> Any:
        how, args, *rest = base.__reduce_ex__(self, protocol)
        if getattr(how, "__name__", "") == "__newobj__" and args[0] is kind:
            parts = None if joined is None else (joined.pairs, joined.methods, joined.attends)
            return _made, (base, parts, region, *args[1:]), *rest
        # In an older protocol, which names the class that others know.
        return how, tuple(base if item is kind else item for item in args), *rest

    names |= {"__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
    # One that is told of derived classes would prepare them for a forward of their own.
    told = is_told(base)
    kind: Any = type(base.__name__, (nn.Module if told else base,), names)
    if told:
        kind.__bases__ = (base,)
    kind.__qualname__ = base.__qualname__
    return kind


def _written(base: Any, joined: JoinedForward) -> dict[str, Any] | None:
    """The methods of a class whose calls are joined; None where `base` has no source."""
    names: dict[str, Any] = {}
    if base.forward is nn.Sequential.forward:
        names["forward"] = _sequential_forward
    elif joined.pairs or joined.attends:
        source = source_of(base.forward)
        if source is None:
            return None
        definition = definition_of(joined, source) if joined.pairs else source.copy()
        if joined.attends:
            definition = _attended(source, copy.deepcopy(definition)) or definition
        names["forward"] = source.compiled(ast.fix_missing_locations(definition), _BOUND)
        names[WHOLE] = whole_of(definition)
    for name in {method for method, _, _ in joined.methods}:
        source = source_of(methods_of(base)[name])
        if source is None:
            return None
        definition = ast.fix_missing_locations(paired(source, name, joined.methods))
        names[name] = source.compiled(definition, _BOUND)
    return names


def _made(
    base: Any,
    parts: tuple[frozenset[Pair], frozenset[tuple[str, str, str]], bool] | None,
    region: bool,
    *args: Any,
) -> nn.Module:
    """For copies and pickles, which know no class that was made here."""
    kind = _class(base, None if parts is None else JoinedForward(*parts), region)
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
