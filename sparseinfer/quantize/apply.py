"""`quantize_`: rounds the weights of a model to int8 in place; after an error the model is unchanged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.selection import prunable_layers
from sparseinfer.prune.layers.unlooked import split_by_inputs, unknown_weights
from sparseinfer.quantize.changes import Changes
from sparseinfer.quantize.inputs import StaticInputs
from sparseinfer.quantize.methods.nearest import RoundToNearest
from sparseinfer.quantize.methods.quantizer import Quantizer, check_quantizer
from sparseinfer.quantize.report import QuantizeReport
from sparseinfer.select import FilterFn, Patterns

_NEAREST = RoundToNearest()


def quantize_(
    model: nn.Module,
    method: Quantizer = _NEAREST,
    *,
    stats: CalibrationStats | None = None,
    inputs: StaticInputs | None = None,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> QuantizeReport:
    """Round the weights of the model's layers to int8, with a scale for each row; returns a report.

    The weights keep their dtype: each is an integer from -127 to 127 times its row's scale, which is in the
    buffer `weight_scale`, float32 [rows]: that of the parameter's name with `_scale` behind it.
    `round(weight / weight_scale)` is the integer, in every dtype. The buffer is not in `state_dict()`, which
    stays that of the plain model. Zeros stay zeros; the report counts weights that are rounded to zero.

    method                      how to round: RoundToNearest, GPTQ, SmoothQuant
    stats                       of `calibrate`, after pruning: for methods that read inputs, and for errors
    inputs                      instead of a scale for each token one for all of a layer's inputs: the buffers
                                `input_scale` and `input_zero_point`. Needs calibrate(..., ranges=True)
    filter_fn, targets, ignore  which layers, default all: see sparseinfer.select.select_modules. Layers are
                                those of `prune_`

    After an error the model is unchanged. TypeError or ValueError: an argument of the wrong kind, a selected
    weight that cannot be written or is not finite, one that is quantized already, or statistics that are
    missing or of another model.
    """
    check_quantizer(method)
    if inputs is not None and not isinstance(inputs, StaticInputs):
        raise TypeError(f"inputs: expected StaticInputs or None, got {type(inputs).__name__}")
    layers = prunable_layers(model, filter_fn, targets, ignore)
    return _quantize_layers(model, layers, method, stats, inputs, unknown_weights(model, ignore))


def _quantize_layers(
    model: nn.Module,
    layers: Mapping[str, Layer],
    method: Quantizer,
    stats: CalibrationStats | None,
    inputs: StaticInputs | None,
    unlooked: Mapping[str, nn.Parameter],
) -> QuantizeReport:
    needs = method.needs | (frozenset({"ranges"}) if inputs else frozenset())
    layers, unseen = split_by_inputs(layers, needs)
    changes = Changes(model)
    with torch.no_grad():
        changes.compute(layers, method, stats, inputs)
        changes.write()
        return changes.finish(unseen, unlooked)
