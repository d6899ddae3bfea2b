"""Checks that a converted model returns the original model's results, up to rounding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._running import run
from sparseinfer.convert.assembly.replacements import Build
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.convert.survey.recording import tensors_of

# How far results may lie from those of the model as it was, relative to their norm, by the dtypes that they
# and the layers may have. Rounding to bfloat16 costs 3e-3 on BERT-base and 2e-2 at most of 211 small random
# models. Those of float32 were chosen, not measured: sums in another order are off by far less.
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
    are different. If results differ though nothing is fused or folded, the model is accepted with a warning.
    """
    if example_inputs is None or not built.replacements:
        return True
    try:
        got = tensors_of(run(model, example_inputs))
        difference = _difference(expected, got, options)
    except Exception as error:
        if last:
            raise
        difference = f"{type(error).__name__}: {error}"
    if not expected and built.folds:
        return False  # nothing to compare
    if difference and last:
        message = (
            f"model: expected the converted model to return for example_inputs what it did, got {difference}"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    return last or not difference


def _difference(expected: Sequence[Tensor], got: Sequence[Tensor], options: ConvertOptions) -> str:
    """What is not equal; "" if all is, but for rounding."""
    if [t.shape for t in got] != [t.shape for t in expected]:
        return f"shapes {[tuple(t.shape) for t in got]} instead of {[tuple(t.shape) for t in expected]}"
    for a, b in zip(expected, got, strict=True):
        a, b = a.double(), b.double()
        finite = a.isfinite()
        if not torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5)):
            return "other infinite values"
        a, b = a[finite], b[finite]
        error, norm = float((b - a).norm()), float(a.norm())
        if not error <= _tolerance(options, got[0].dtype) * norm:
            return f"a relative difference of {error / norm if norm else error:.2g}"
    return ""


def _tolerance(options: ConvertOptions, dtype: torch.dtype) -> float:
    """Of the shortest dtype that the result may have gone through."""
    allowed = {dtype for rounding in options.roundings for dtype in rounding if dtype is not None}
    coarsest = max(_TOLERANCES.values())
    return max(_TOLERANCES.get(dtype, coarsest) for dtype in {dtype, *allowed})
