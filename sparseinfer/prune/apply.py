"""`prune_`: prunes a model in place; after an error the model is unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sparseinfer.prune.budgets.budget import Budget
from sparseinfer.prune.calibration.batches import Forward
from sparseinfer.prune.calibration.calibrate import statistics_of
from sparseinfer.prune.calibration.sequential import find_blocks, prune_blocks
from sparseinfer.prune.calibration.statistics import CalibrationStats, check_stats
from sparseinfer.prune.changes import Changes
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.selection import prunable_layers
from sparseinfer.prune.layers.unlooked import split_by_inputs, unknown_weights
from sparseinfer.prune.methods.method import Method, check_method
from sparseinfer.prune.methods.sparse import SparseMethod
from sparseinfer.prune.report import PruneReport
from sparseinfer.select import FilterFn, Patterns


def prune_(
    model: nn.Module,
    method: Method,
    *,
    stats: CalibrationStats | None = None,
    batches: Iterable[Any] | None = None,
    sequential: bool | str = False,
    forward: Forward | None = None,
    keep_masks: bool = True,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
    progress: bool = True,
) -> PruneReport:
    """Write zeros into the weights of the model's layers, in place; returns a report.

    Layers are nn.Linear, nn.Conv1d, nn.Conv2d and transformers' Conv1D, the projections of
    nn.MultiheadAttention, the weights of nn.LSTM, nn.GRU and nn.RNN, and experts of transformers: see
    sparseinfer.prune.layers.Layer. `unlooked` of the report names all other weights, and
    layers whose inputs the method needs but calibration cannot record.

    method                      what to prune, such as Magnitude(0.5)
    stats                       of `calibrate`, for methods that read inputs or gradients
    batches, forward            instead of stats: calibrate with them first, see `calibrate`
    sequential                  prune block by block, each block calibrated with the outputs of the pruned
                                blocks before it. True finds the model's nn.ModuleList of blocks, a string
                                names it. See sparseinfer.prune.calibration.sequential
    keep_masks                  whether the zeros stay zeros while the model is trained, until `finalize_`
    filter_fn, targets, ignore  which layers, default all: see sparseinfer.select.select_modules
    progress                    whether a terminal shows a progress bar

    Weights are of any floating dtype, device and strides. A weight that several modules share is pruned and
    counted once, by the inputs of the first of them; if one was not selected, a warning says so.

    After an error the model is unchanged. TypeError or ValueError: an argument of the wrong kind, a selected
    weight that cannot be pruned in place (see sparseinfer.prune.layers.prunable_layers), a pattern that does
    not divide a weight, statistics of another model, or bad batches (see `calibrate`).
    """
    check_method(method)
    layers = prunable_layers(model, filter_fn, targets, ignore)
    unlooked = unknown_weights(model, ignore)
    if sequential:
        return _prune_sequentially(
            model,
            layers,
            method,
            stats,
            batches,
            sequential,
            unlooked=unlooked,
            forward=forward,
            keep_masks=keep_masks,
            progress=progress,
        )
    if batches is not None:
        if stats is not None:
            raise ValueError("batches: expected None beside stats, got both")
        seen, _ = split_by_inputs(layers, method.all_needs)
        stats = statistics_of(model, seen, batches, forward=forward, progress=progress)
    return prune_layers(model, layers, method, stats=stats, unlooked=unlooked, keep_masks=keep_masks)


def prune_layers(
    model: nn.Module,
    layers: Mapping[str, Layer],
    method: Method,
    *,
    stats: CalibrationStats | None = None,
    unlooked: Mapping[str, nn.Parameter],
    keep_masks: bool = True,
) -> PruneReport:
    """`prune_` for layers that are selected already.

    unlooked  weights of no kind that is pruned, for the report
    """
    layers, unseen = split_by_inputs(layers, method.all_needs)
    changes = Changes(model, undoable=False)
    with torch.no_grad():
        for resolved, its_layers in _resolved(method, layers, stats):
            changes.compute(its_layers, resolved, stats)
        changes.write()
        return changes.finish(layers, unseen, unlooked, keep_masks)


def _prune_sequentially(
    model: nn.Module,
    layers: Mapping[str, Layer],
    method: Method,
    stats: CalibrationStats | None,
    batches: Iterable[Any] | None,
    sequential: bool | str,
    *,
    unlooked: Mapping[str, nn.Parameter],
    forward: Forward | None,
    keep_masks: bool,
    progress: bool,
) -> PruneReport:
    if batches is None:
        raise ValueError("batches: expected some to calibrate each block with, got None")
    if "gradients" in method.needs:
        raise ValueError(f"sequential: expected a method without gradients, got {type(method).__name__}")
    if isinstance(method, SparseMethod) and method.scope == "global":
        raise ValueError("scope: expected 'layer' or 'row' with sequential, got 'global'")
    layers, unseen = split_by_inputs(layers, method.all_needs)
    blocks = find_blocks(model, layers, sequential)
    changes = Changes(model, undoable=True)
    with torch.no_grad():
        methods = _resolved(method, layers, stats)

        def prune_block(block: Mapping[str, Layer], block_stats: CalibrationStats) -> None:
            for resolved, its_layers in methods:
                in_block = {fqn: layer for fqn, layer in block.items() if fqn in its_layers}
                changes.compute(in_block, resolved, block_stats)
            changes.write()

        try:
            prune_blocks(model, blocks, layers, batches, prune_block, forward=forward, progress=progress)
        except BaseException:
            changes.undo()
            raise
        return changes.finish(layers, unseen, unlooked, keep_masks)


def _resolved(
    method: Method, layers: Mapping[str, Layer], stats: CalibrationStats | None
) -> list[tuple[Method, Mapping[str, Layer]]]:
    """The method with its budget spent: methods that know the sparsity of each layer, and their layers.

    ValueError: statistics that the budget needs and lacks, a sparsity for a layer that was not selected, or a
    pattern that does not divide a weight.
    """
    if isinstance(method, SparseMethod):
        if isinstance(method.sparsity, Budget):
            check_stats(stats, layers, method.sparsity.needs, method.sparsity)
        if isinstance(method.sparsity, Mapping):
            for fqn in method.sparsity:
                if fqn not in layers:
                    raise ValueError(f"sparsity: expected names of selected layers, got {fqn!r}")
    methods = method.spread(layers, stats)
    for resolved, its_layers in methods:
        if isinstance(resolved, SparseMethod):
            for layer in its_layers.values():
                resolved.pattern.unit(layer)
    return methods
