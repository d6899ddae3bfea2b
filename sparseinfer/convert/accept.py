"""Checks that a converted model returns the original model's results, up to rounding."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._running import run
from sparseinfer.convert.assembly.reduced import Part, parts_of, reduced
from sparseinfer.convert.assembly.replacements import Build
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.convert.rounding import moved_by_rounding
from sparseinfer.convert.survey.recording import tensors_of
from sparseinfer.convert.survey.survey import Survey
from sparseinfer.convert.timing.whole_model import parts_to_leave

# How far results may lie from those of the model as it was, relative to their norm, before it is asked what
# rounding explains, by the dtypes that they and the layers may have. Rounding to bfloat16 costs 3e-3 on
# BERT-base and 2e-2 at most of 211 small random models. Those of float32 were chosen, not measured: sums in
# another order are off by far less.
#
# Those of 8 bits are derived: values that span r times their root mean square are rounded by the part
# r / (255 · sqrt(12)) of it, 0.009 for r = 8 as of normal values, 0.036 for r = 32 with outliers; weights and
# x by that much in each layer, which over sixteen layers in a row adds up to 4 · sqrt(2) times as much.
_TOLERANCES = {
    torch.float64: 1e-3,
    torch.float32: 1e-3,
    torch.bfloat16: 0.05,
    torch.float16: 0.05,
    torch.int8: 0.2,
    torch.uint8: 0.2,
}


def accepted(
    model: nn.Module,
    example_inputs: Any,
    expected: Sequence[Tensor],
    built: Build,
    options: ConvertOptions,
    *,
    last: bool,
) -> bool:
    """Runs the converted model and compares with `expected`, the original model's result.

    Fusing is correct without this check, which is a second look. A folded batch norm needs it: its weights
    are different. `last`: nothing is fused or folded; what a run raises is then raised.
    """
    if example_inputs is None or not built.replacements:
        return True
    try:
        difference = _difference(expected, _results(model, example_inputs))
    except Exception:
        if last:
            raise
        return False
    if not expected and built.folds:
        return False  # nothing to compare
    return difference <= _tolerance(options, [t.dtype for t in expected])


def without_wrong_parts(
    model: nn.Module,
    survey: Survey,
    decisions: Sequence[Decision],
    built: Build,
    trial: Callable[[Build], nn.Module],
    example_inputs: Any,
    options: ConvertOptions,
) -> Build:
    """The build, or what is left of it so that results differ by no more than rounding explains.

    trial   makes a converted model that shares its tensors with the original

    For a build whose results are not accepted. The parts that make them differ are found by halving, and a
    warning says which. A model that changes as much if its own weights are rounded (see `rounding`) is
    accepted as it is.
    """
    expected = survey.recording.result

    def difference(other: nn.Module) -> float:
        return _difference(expected, _results(other, example_inputs))

    got = difference(trial(built))
    explained = _tolerance(options, [t.dtype for t in expected])
    for moved in moved_by_rounding(model, built.replacements, options, difference):
        explained = max(explained, moved)
        if got <= explained:
            return built
    parts = parts_of(survey, decisions, built)
    reason = f"{_told(got)}, and rounding explains {explained:.2g}: the model changes what it sees"

    def without(left: Sequence[Part]) -> Build:
        return reduced(model, survey, built, parts, left, reason)

    def differs(kept: Sequence[Part]) -> bool:
        return difference(trial(without([part for part in parts if part not in kept]))) > explained

    left = parts_to_leave(parts, differs)
    names = ", ".join(site.fqn for site in survey.sites if any(site.module in part for part in left))
    message = f"model: expected the original's results for example_inputs, got {_told(got)}"
    warnings.warn(f"{message} (these stay dense: {names})", UserWarning, stacklevel=4)
    return without(left)


def _results(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    return tensors_of(run(model, example_inputs))


def _difference(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """‖got - expected‖ / ‖expected‖, the largest of all tensors; infinite for other shapes or infinities."""
    if [t.shape for t in got] != [t.shape for t in expected]:
        return math.inf
    largest = 0.0
    for a, b in zip(expected, got, strict=True):
        a, b = a.double(), b.double()
        finite = a.isfinite()
        if not torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5)):
            return math.inf
        a, b = a[finite], b[finite]
        error, norm = float((b - a).norm()), float(a.norm())
        if not math.isfinite(error) or (error and not norm):
            return math.inf
        largest = max(largest, error / norm if error else 0.0)
    return largest


def _told(difference: float) -> str:
    if difference == math.inf:
        return "results of other shapes or infinite values"
    return f"results that differ by {difference:.2g}"


def _tolerance(options: ConvertOptions, results: Sequence[torch.dtype]) -> float:
    """Of the shortest dtype that a result may have gone through."""
    coarsest = max(_TOLERANCES.values())
    return max((_TOLERANCES.get(dtype, coarsest) for dtype in {*results, *options.permitted}), default=0.0)
