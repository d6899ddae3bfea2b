"""`calibrate`: collects statistics of the layers' inputs, and of a loss's gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch import nn

from sparseinfer._progress import Progress
from sparseinfer._running import call, evaluating
from sparseinfer.prune.calibration.batches import Forward, checked_batches, every_batch
from sparseinfer.prune.calibration.collect import Collector
from sparseinfer.prune.calibration.gradients import Gradients, LossFn
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.selection import prunable_layers
from sparseinfer.select import FilterFn, Patterns


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    gram: bool = True,
    ranges: bool = False,
    loss_fn: LossFn | None = None,
    forward: Forward | None = None,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
    progress: bool = True,
) -> CalibrationStats:
    """Run the model over the batches once and sum up the statistics that pruning methods need.

    batches                     each a tensor or a tuple (positional arguments of the model) or a mapping
                                (keyword arguments), on the model's device
    gram                        whether to keep Gram matrices, for solvers and the error of each layer; norms
                                are always kept
    ranges                      whether to keep the ranges of inputs too, for static scales of activations
                                and SmoothQuant
    loss_fn(output, batch)      a scalar, whose gradients are kept too, for Gradient and Taylor
    forward(model, batch)       runs the model instead of the call above
    filter_fn, targets, ignore  which layers, default all: see sparseinfer.select.select_modules
    progress                    whether a terminal shows a progress bar

    Each batch is released after its run. Memory does not grow with their number: 4·groups·k² bytes for the
    Gram matrix of each distinct layer input (8 of float64), 16·groups·k bytes for norms, 0.5 MB more for
    ranges and, with a loss_fn, 4 bytes for each weight. Every row of an input counts, including padding.

    The model runs in eval mode, without gradients unless there is a loss_fn, and is left unchanged, also
    after an error.

    TypeError or ValueError: an argument of the wrong kind; no batch; a NaN or infinite input or loss; a
    selected layer that is never called. The message names it. Layers whose inputs cannot be recorded, such
    as the recurrent product of nn.LSTM (`Layer.is_seen`), have only gradients, if there is a loss_fn.
    """
    layers = prunable_layers(model, filter_fn, targets, ignore)
    return statistics_of(
        model, layers, batches, gram=gram, ranges=ranges, loss_fn=loss_fn, forward=forward, progress=progress
    )


def statistics_of(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Iterable[Any],
    *,
    gram: bool = True,
    ranges: bool = False,
    loss_fn: LossFn | None = None,
    forward: Forward | None = None,
    progress: bool = True,
) -> CalibrationStats:
    """`calibrate` for layers that are selected already."""
    batches = checked_batches(batches)
    forward = forward or call
    gradients = None if loss_fn is None else Gradients(layers, loss_fn)
    total = len(batches) if isinstance(batches, Sized) else None
    with (
        evaluating(model),
        Progress("calibrating", total, shown=progress) as bar,
        Collector(layers, gram=gram, ranges=ranges) as collector,
        gradients or torch.no_grad(),
    ):
        for batch in every_batch(batches):
            output = forward(model, batch)
            collector.end_of_run()
            if gradients is not None:
                gradients.add(output, batch)
            bar.advance()
    stats = collector.stats()
    return stats if gradients is None else gradients.joined(stats)
