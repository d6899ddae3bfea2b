"""What each layer of a model would take if it were pruned: the times that a latency budget chooses by."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparseinfer._progress import Progress
from sparseinfer._select import FilterFn, Patterns, select_modules
from sparseinfer.convert.conversion import Layer as ConvertLayer
from sparseinfer.convert.conversion import Survey, Unit, case_of, surveyed
from sparseinfer.convert.kinds import types_in
from sparseinfer.convert.measure import Timer
from sparseinfer.convert.options import Memory, Options
from sparseinfer.convert.planner import Plan, plan
from sparseinfer.prune import NM, LatencyTable, Layer, Pattern, Random, Unstructured
from sparseinfer.prune.budgets.budget import Option
from sparseinfer.prune.budgets.latency_table import DENSE
from sparseinfer.prune.checks import check_fraction


def latency_table(
    model: nn.Module,
    example_inputs: Any,
    *,
    sparsities: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    patterns: Sequence[Pattern] = (Unstructured(),),
    weights: torch.dtype | None = None,
    activations: torch.dtype | None = None,
    memory: Memory = 1.0,
    measure: bool = True,
    budget_s: float = 120.0,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> LatencyTable:
    """The time of each layer, as `convert` would run it, at every sparsity and pattern: for LatencyBudget.

    example_inputs  inputs of one typical run, as for `convert`; a layer is timed for the token counts that it
                    brings, and its time is that of one call with each of them
    sparsities      fractions in [0, 1)
    patterns        of the zeros; NM(n, m) comes at its own sparsity. A layer whose shape a pattern does not
                    divide is not timed in it
    weights, activations, memory, measure, budget_s, filter_fn, targets, ignore   as for `convert`

    Layers are Linear, Conv1d, Conv2d and transformers' Conv1D, as far as `convert` can make them sparse and
    the run reaches them; the others are not in the table. Zeros lie at random. Layers of one shape are timed
    once, and those of one input together, as `convert` makes one matrix of them. Where dense is faster, the
    time is the dense one. Times are remembered like those of `convert`. The model is unchanged.

    TypeError or ValueError: as for `convert`.
    """
    asked = Options.checked(
        tokens=None,
        weights=weights,
        activations=activations,
        memory=memory,
        measure=measure,
        budget_s=budget_s,
        fuse=True,
        fold_batch_norm=False,
    )
    modules = select_modules(model, types_in(model), filter_fn, targets, ignore)
    modules = {fqn: module for fqn, module in modules.items() if not isinstance(module, nn.MaxPool2d)}
    survey = surveyed(model, modules, example_inputs, asked)
    # Of units with equal keys one is timed.
    alike: defaultdict[object, list[Unit]] = defaultdict(list)
    for unit in survey.units:
        reached = all(layer.module in survey.recording.shapes for layer in unit.layers)
        if reached and not unit.part:
            case, tokens = case_of(unit, survey.recording, asked)
            if not isinstance(case, str):
                alike[(case.kind, case.shape, tokens, *unit.sizes)].append(unit)
    choices = list(dict.fromkeys([DENSE, *_choices(sparsities, patterns)]))
    found: dict[str, dict[Option, float]] = {}
    with Progress("timing", len(alike) * len(choices)) as progress:
        timer = Timer(measure=measure, budget_s=budget_s, cold=survey.cold, on_case=progress.describe)
        for units in alike.values():
            times = {}
            for choice in choices:
                us = _us(units[0], choice, survey, asked, timer)
                progress.advance()
                if math.isfinite(us):
                    times[choice] = us
            for unit in units:
                for layer, size in zip(unit.layers, unit.sizes, strict=True):
                    share = size / sum(unit.sizes)
                    found[layer.fqn] = {choice: us * share for choice, us in times.items()}
    timed = {fqn: found[fqn] for fqn in modules if DENSE in found.get(fqn, ())}
    together = [[layer.fqn for layer in unit.layers] for units in alike.values() for unit in units]
    return LatencyTable(timed, [group for group in together if len(group) > 1 and group[0] in timed])


def _choices(sparsities: Sequence[float], patterns: Sequence[Pattern]) -> Iterator[Option]:
    for pattern in patterns:
        if not isinstance(pattern, Pattern):
            raise TypeError(f"patterns: expected patterns such as Block(4, 4), got {pattern!r}")
        for sparsity in (pattern.sparsity,) if isinstance(pattern, NM) else sparsities:
            check_fraction("sparsities", sparsity)
            yield sparsity, pattern


def _us(unit: Unit, choice: Option, survey: Survey, options: Options, timer: Timer) -> float:
    """Microseconds of a unit with such zeros; infinity where they do not fit it, or nothing is known."""
    layers = [_prunable(layer) for layer in unit.layers]
    try:
        for layer in layers:
            choice[1].unit(layer)
    except ValueError:  # the pattern does not divide the shape
        return math.inf
    weight = torch.cat([_zeros_at_random(layer, choice) for layer in layers])
    weight = weight.to(unit.weights.weight.dtype)
    unit = replace(unit, weights=replace(unit.weights, weight=weight))
    case, tokens = case_of(unit, survey.recording, options)
    assert not isinstance(case, str)
    decision = plan(case, tokens, timer, options.memory)
    module, part = unit.layers[0].module, unit.layers[0].parts[unit.part]
    return sum(_call_us(decision, part.tokens(shape)) for shape in survey.recording.shapes[module])


def _prunable(layer: ConvertLayer) -> Layer:
    return Layer(layer.fqn, layer.module, cast(nn.Parameter, layer.module.weight))


def _zeros_at_random(layer: Layer, choice: Option) -> Tensor:
    """The layer's matrix [n, k] of ones with zeros of this choice."""
    sparsity, pattern = choice
    method = Random(0.0).with_amount(sparsity, pattern)
    mask = method.prune({layer.fqn: layer}, None)[layer.fqn].mask
    return layer.matrix(mask).flatten(0, 1)


def _call_us(decision: Plan, tokens: int) -> float:
    """One call with so many tokens, from the nearest count that was timed; above it in proportion."""
    i = min(range(len(decision.times)), key=lambda i: abs(decision.times[i].tokens - tokens))
    times = decision.times[i]
    us = times.sparse[decision.chosen[i]] if decision.is_sparse else times.dense_us
    return us * max(tokens / times.tokens, 1)
