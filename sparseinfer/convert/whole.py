"""Compares the whole converted model with dense ones, and leaves out what makes it slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sparseinfer._machine import free_bytes
from sparseinfer.convert.assembly.reduced import Part, parts_of, reduced
from sparseinfer.convert.assembly.regions import layers_in_regions
from sparseinfer.convert.assembly.replacements import Build, build
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.options import COMPACT, ConvertOptions
from sparseinfer.convert.survey.survey import Survey
from sparseinfer.convert.timing.whole_model import Comparison, parts_to_leave

# What `explain` says of a layer that was converted at first.
REASON = "the whole model is faster with torch's own"
DENSE_REASON = "the whole model is faster with its best dense form"


@dataclass(frozen=True)
class Whole:
    """A conversion: what was decided for each product, and the modules made of it."""

    decisions: Sequence[Decision]
    built: Build


def without_slower_parts(
    model: nn.Module,
    survey: Survey,
    decisions: Sequence[Decision],
    built: Build,
    trial: Callable[[Build], nn.Module],
    example_inputs: Any,
    options: ConvertOptions,
) -> Whole:
    """The conversion, or what is left of it so that the model is not surely slower than any dense one.

    trial   makes a converted model that shares its tensors with the original

    It is compared with its best dense form, in which every layer has the dense implementation that was
    fastest for it, and then with the original. Parts that make it slower than one of them become that.

    Only where times are measured, with example inputs, on the CPU; not with memory="compact", which asks for
    few bytes; and where there is time (see `timing.whole_model`). What is not sure changes nothing.
    """
    whole = Whole(decisions, built)
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    asked = options.measure and options.memory_limit != COMPACT
    if example_inputs is None or not asked or on_gpu or not built.replacements:
        return whole
    comparison = Comparison(model, example_inputs, options.budget_s)
    whole = _against_dense(model, survey, whole, trial, comparison, options)
    parts = parts_of(survey, whole.decisions, whole.built)

    def without(left: Sequence[Part]) -> Build:
        return reduced(model, survey, whole.built, parts, left, REASON)

    left = _slower(parts, comparison, lambda left: trial(without(left)))
    return replace(whole, built=without(left))


def regions_pay(
    with_regions: Callable[[], nn.Module],
    without: Callable[[], nn.Module],
    example_inputs: Any,
    options: ConvertOptions,
) -> bool:
    """Whether the converted model is not surely slower with regions than without; both are made by these."""
    model = with_regions()
    if not layers_in_regions(model):
        return True
    comparison = Comparison(without(), example_inputs, options.budget_s)
    return not comparison.is_slower(lambda: model)


def _against_dense(
    model: nn.Module,
    survey: Survey,
    whole: Whole,
    trial: Callable[[Build], nn.Module],
    comparison: Comparison,
    options: ConvertOptions,
) -> Whole:
    """The conversion with parts in their best dense form that make it slower than this form of the model."""
    dense = {d: replace(d, plan=d.dense, dense=None) for d in whole.decisions if d.dense is not None}
    # There have to be copies of the weights, for as long as this takes.
    if not dense or sum(d.product.weights.nbytes for d in dense) > free_bytes() / 2:
        return whole
    instead = build(model, replace(survey, pools={}), dense.values(), options)
    sparse = {site.module for d in whole.decisions if d.plan.is_sparse for site in d.product.sites}
    every = parts_of(survey, whole.decisions, whole.built)
    parts = [part for part in every if part <= sparse]

    def without(left: Sequence[Part]) -> Build:
        return reduced(model, survey, whole.built, every, left, DENSE_REASON, instead)

    rival = comparison.against(lambda: trial(without(parts)))
    left = _slower(parts, rival, lambda left: trial(without(left))) if rival else []
    modules = frozenset().union(*left)
    decisions = [
        replace(dense[d], plan=replace(dense[d].plan, reason=DENSE_REASON))
        if d in dense and modules.issuperset(site.module for site in d.product.sites)
        else d
        for d in whole.decisions
    ]
    return Whole(decisions, without(left))


def _slower(
    parts: Sequence[Part], comparison: Comparison, without: Callable[[Sequence[Part]], nn.Module]
) -> list[Part]:
    """The parts without which the model is not slower than what it is compared with."""

    def is_slower(kept: Sequence[Part]) -> bool | None:
        return comparison.is_slower(lambda: without([part for part in parts if part not in kept]))

    return parts_to_leave(parts, is_slower)
