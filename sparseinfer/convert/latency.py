"""`latency_table`: measures how long each layer would take at every sparsity, for LatencyBudget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sparseinfer._progress import Progress
from sparseinfer.convert.candidates.choose import candidates_of
from sparseinfer.convert.options import ConvertOptions, TimingKeywords, options_of, shows_keywords
from sparseinfer.convert.plan import Plan, plan
from sparseinfer.convert.survey.kinds import types_in
from sparseinfer.convert.survey.survey import Product, Site, Survey, products_of, survey_of
from sparseinfer.convert.timing.timer import Timer
from sparseinfer.prune import NM, LatencyTable, Layer, Pattern, Random, Unstructured
from sparseinfer.prune.budgets.budget import Option
from sparseinfer.prune.budgets.latency_table import DENSE
from sparseinfer.prune.checks import check_fraction
from sparseinfer.select import FilterFn, Patterns, select_modules

if TYPE_CHECKING:
    from typing_extensions import Unpack


@shows_keywords(TimingKeywords)
def latency_table(
    model: nn.Module,
    example_inputs: Any,
    *,
    sparsities: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    patterns: Sequence[Pattern] = (Unstructured(),),
    budget_s: float = 120.0,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
    **keywords: Unpack[TimingKeywords],
) -> LatencyTable:
    """The time of each layer, as `convert` would run it, at every sparsity and pattern.

    example_inputs  inputs of one typical run, as for `convert`; a layer is timed for the token counts of this
                    run, and its time is the sum of one call with each of them
    sparsities      fractions in [0, 1)
    patterns        of the zeros; NM(n, m) sets its own sparsity. A layer whose shape a pattern does not
                    divide is not timed with it
    budget_s        seconds to measure for, at most; what is left is predicted
    precision, weights, activations, memory, measure, filter_fn, targets, ignore   as for `convert`

    Layers are Linear, Conv1d, Conv2d and transformers' Conv1D that `convert` can make sparse and that the run
    calls; others are not in the table. Zeros are placed at random. Layers of one shape are timed once; layers
    with the same input are timed as one matrix, as in `convert`. Where dense is faster, the time is the dense
    one. Times are cached like those of `convert`. The model is unchanged.

    TypeError or ValueError: as for `convert`.
    """
    options = options_of("latency_table", None, keywords, TimingKeywords)
    options = replace(options, budget_s=budget_s)
    modules = select_modules(model, types_in(model), filter_fn, targets, ignore)
    survey = survey_of(model, modules, example_inputs, named=False)
    alike = _alike(products_of(model, survey, fuse=True, fold=False), survey, options)
    choices = list(dict.fromkeys([DENSE, *_choices(sparsities, patterns)]))
    us: dict[str, dict[Option, float]] = {}
    with Progress("timing", len(alike) * len(choices)) as progress:
        timer = Timer(
            measure=options.measure,
            budget_s=options.budget_s,
            cold=survey.exceeds_cache,
            on_start=progress.describe,
        )
        for products in alike:
            times = {}
            for choice in choices:
                product_us = _us(products[0], choice, survey, options, timer)
                progress.advance()
                if math.isfinite(product_us):
                    times[choice] = product_us
            for product in products:
                us.update(_shares(product, times))
    timed = {fqn: us[fqn] for fqn in survey.modules if DENSE in us.get(fqn, ())}
    together = [[site.fqn for site in product.sites] for products in alike for product in products]
    return LatencyTable(timed, [fqns for fqns in together if len(fqns) > 1 and fqns[0] in timed])


def _alike(products: Sequence[Product], survey: Survey, options: ConvertOptions) -> list[list[Product]]:
    """The products that can be timed; those in one list take the same time, so that one is timed for all."""
    groups: defaultdict[object, list[Product]] = defaultdict(list)
    for product in products:
        is_reached = all(site.module in survey.recording.shapes for site in product.sites)
        if is_reached and not product.name:
            candidates, tokens = candidates_of(product, survey.recording, options)
            if not isinstance(candidates, str):
                groups[(candidates.kind, candidates.shape, tokens, *product.sizes)].append(product)
    return list(groups.values())


def _shares(product: Product, times: Mapping[Option, float]) -> dict[str, dict[Option, float]]:
    """Of each site in the times of the product, by rows."""
    n = sum(product.sizes)
    return {
        site.fqn: {choice: us * (size / n) for choice, us in times.items()}
        for site, size in zip(product.sites, product.sizes, strict=True)
    }


def _choices(sparsities: Sequence[float], patterns: Sequence[Pattern]) -> Iterator[Option]:
    for pattern in patterns:
        if not isinstance(pattern, Pattern):
            raise TypeError(f"patterns: expected patterns such as Block(4, 4), got {pattern!r}")
        for sparsity in (pattern.sparsity,) if isinstance(pattern, NM) else sparsities:
            check_fraction("sparsities", sparsity)
            yield sparsity, pattern


def _us(product: Product, choice: Option, survey: Survey, options: ConvertOptions, timer: Timer) -> float:
    """Microseconds of a product with such zeros; infinity where they do not fit it, or nothing is known."""
    layers = [_prunable(site) for site in product.sites]
    try:
        for layer in layers:
            choice[1].unit(layer)
    except ValueError:  # the pattern does not divide the shape
        return math.inf
    weight = torch.cat([_zeros_at_random(layer, choice) for layer in layers])
    weights = replace(product.weights, weight=weight.to(product.weights.weight.dtype))
    candidates, tokens = candidates_of(replace(product, weights=weights), survey.recording, options)
    assert not isinstance(candidates, str)
    planned = plan(candidates, tokens, timer, options.memory_limit)
    site = product.sites[0]
    tokens_of = site.matrices[product.name].tokens
    return sum(_call_us(planned, tokens_of(shape)) for shape in survey.recording.shapes[site.module])


def _prunable(site: Site) -> Layer:
    return Layer(site.fqn, site.module, cast(nn.Parameter, site.module.weight))


def _zeros_at_random(layer: Layer, choice: Option) -> Tensor:
    """The layer's matrix [n, k] of ones with zeros of this choice."""
    sparsity, pattern = choice
    method = Random(0.0).with_amount(sparsity, pattern)
    mask = method.prune({layer.fqn: layer}, None)[layer.fqn].mask
    return layer.matrix(mask).flatten(0, 1)


def _call_us(planned: Plan, tokens: int) -> float:
    """One call with so many tokens, from the nearest count that was timed; above it in proportion."""
    i = min(range(len(planned.times)), key=lambda i: abs(planned.times[i].tokens - tokens))
    times = planned.times[i]
    us = times.us(planned.chosen[i]) if planned.is_sparse else times.dense_us
    return us * max(tokens / times.tokens, 1)
