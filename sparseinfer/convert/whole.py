"""Compares the whole converted model with the original, and leaves out what makes it slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from sparseinfer.convert.assembly.reduced import Part, parts_of, reduced
from sparseinfer.convert.assembly.replacements import Build
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.options import COMPACT, ConvertOptions
from sparseinfer.convert.survey.survey import Survey
from sparseinfer.convert.timing.whole_model import Comparison, parts_to_leave

# What `explain` says of a layer that was converted at first.
REASON = "the whole model is faster with torch's own"


def without_slower_parts(
    model: nn.Module,
    survey: Survey,
    decisions: Sequence[Decision],
    built: Build,
    trial: Callable[[Build], nn.Module],
    example_inputs: Any,
    options: ConvertOptions,
) -> Build:
    """The build, or what is left of it so that the model is not surely slower than the original.

    trial   makes a converted model that shares its tensors with the original

    Only where times are measured, with example inputs, on the CPU; not with memory="compact", which asks for
    few bytes; and where there is time (see `timing.whole_model`). What is not sure changes nothing.
    """
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    asked = options.measure and options.memory_limit != COMPACT
    if example_inputs is None or not asked or on_gpu or not built.replacements:
        return built
    parts = parts_of(survey, decisions, built)
    comparison = Comparison(model, example_inputs, options.budget_s)

    def with_only(kept: Sequence[Part]) -> Build:
        left = [part for part in parts if part not in kept]
        return reduced(model, survey, built, parts, left, REASON) if left else built

    left = parts_to_leave(parts, lambda kept: comparison.is_slower(lambda: trial(with_only(kept))))
    return with_only([part for part in parts if part not in left])
