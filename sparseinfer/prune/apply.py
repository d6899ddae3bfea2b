"""`prune_`: zeros in place, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.prune.calibrate import Forward, statistics_of
from sparseinfer.prune.layers import Layer, prunable_layers
from sparseinfer.prune.masks import held_masks, hold_masks_
from sparseinfer.prune.methods import Method, Pruned, SparseMethod
from sparseinfer.prune.report import PrunedLayer, PruneReport, UnlookedWeight
from sparseinfer.prune.sequential import find_blocks, prune_blocks
from sparseinfer.prune.sparsity import Budget
from sparseinfer.prune.statistics import CalibrationStats, check_stats
from sparseinfer.prune.unlooked import (
    UNKNOWN,
    UNSEEN,
    all_weights,
    count_nonzero,
    split_by_inputs,
    unknown_weights,
)
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
    """Write zeros into the weights of the model's layers, in place; report what is left.

    Layers are nn.Linear, nn.Conv1d, nn.Conv2d and transformers' Conv1D, the projections of
    nn.MultiheadAttention, the weights of nn.LSTM, nn.GRU and nn.RNN, and experts of transformers: see
    sparseinfer.prune.layers.Layer. What else looks like a weight is named by the report, `unlooked`; so are
    layers whose inputs the method needs, but no calibration sees.

    method                      what to prune, such as Magnitude(0.5)
    stats                       of `calibrate`, for methods that read inputs or gradients
    batches, forward            instead of stats: calibrate with them first, see `calibrate`
    sequential                  prune block by block, each block calibrated by what the pruned ones before it
                                make of the batches. True finds the model's nn.ModuleList of blocks, a string
                                names it. See sparseinfer.prune.sequential
    keep_masks                  whether the zeros stay zeros while the model is trained, until `finalize_`
    filter_fn, targets, ignore  which layers, default all: see sparseinfer.select.select_modules
    progress                    whether a terminal shows a progress bar

    Weights are of any floating dtype, device and strides. A weight that several modules share is pruned and
    counted once, by the inputs of the first of them; if one was not selected, a warning says so.

    The model is unchanged after any error. TypeError or ValueError: an argument of the wrong kind, a selected
    weight that cannot be pruned in place (see sparseinfer.prune.layers.prunable_layers), a pattern that does
    not divide a weight, statistics of another model, or bad batches (see `calibrate`).
    """
    if not isinstance(method, Method):
        raise TypeError(f"method: expected a pruning method such as Magnitude(0.5), got {method!r}")
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
        seen, _ = split_by_inputs(layers, _needs(method))
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
    """`prune_` for layers that are selected already. `unlooked`: weights of no kind that is pruned."""
    layers, unseen = split_by_inputs(layers, _needs(method))
    changes = _Changes(model, undoable=False)
    with torch.no_grad():
        for part, own in _parts(method, layers, stats):
            changes.compute(own, part, stats)
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
    layers, unseen = split_by_inputs(layers, _needs(method))
    blocks = find_blocks(model, layers, sequential)
    changes = _Changes(model, undoable=True)
    with torch.no_grad():
        parts = _parts(method, layers, stats)

        def prune_block(own: Mapping[str, Layer], found: CalibrationStats) -> None:
            for part, some in parts:
                changes.compute({fqn: layer for fqn, layer in own.items() if fqn in some}, part, found)
            changes.write()

        try:
            prune_blocks(model, blocks, layers, batches, prune_block, forward=forward, progress=progress)
        except BaseException:
            changes.undo()
            raise
        return changes.finish(layers, unseen, unlooked, keep_masks)


def _needs(method: Method) -> frozenset[str]:
    """What the method reads of statistics, and its budget."""
    budget = method.sparsity if isinstance(method, SparseMethod) else None
    return method.needs | (budget.needs if isinstance(budget, Budget) else frozenset())


def _parts(
    method: Method, layers: Mapping[str, Layer], stats: CalibrationStats | None
) -> list[tuple[Method, Mapping[str, Layer]]]:
    """Methods without a budget, and the layers of each."""
    if isinstance(method, SparseMethod):
        if isinstance(method.sparsity, Budget):
            check_stats(stats, layers, method.sparsity.needs, method.sparsity)
        if isinstance(method.sparsity, Mapping):
            for fqn in method.sparsity:
                if fqn not in layers:
                    raise ValueError(f"sparsity: expected names of selected layers, got {fqn!r}")
    parts = method.spread(layers, stats)
    for part, own in parts:
        if isinstance(part, SparseMethod):
            for layer in own.values():
                part.pattern.unit(layer)
    return parts


class _Changes:
    """Everything that is written to a model: weights, and the masks that it holds already."""

    def __init__(self, model: nn.Module, *, undoable: bool) -> None:
        self._model = model
        self._undoable = undoable
        self._before: list[tuple[Tensor, Tensor]] = []
        self._held = {id(held.weight): held for module in model.modules() for held in held_masks(module)}
        self._computed: list[tuple[Layer, Pruned]] = []
        self._masks: dict[str, Tensor] = {}
        self._errors: dict[str, float] = {}

    def compute(self, layers: Mapping[str, Layer], method: Method, stats: CalibrationStats | None) -> None:
        """What the method makes of these layers. ValueError: bad statistics, or new weights not finite."""
        check_stats(stats, layers, method.needs, method)
        for fqn, pruned in method.prune(layers, stats).items():
            layer, weight = layers[fqn], pruned.applied(layers[fqn])
            if pruned.weight is not None and not weight.isfinite().all():
                name = type(method).__name__
                raise ValueError(f"{layer.name}: expected finite weights of {name}, got NaN or infinite ones")
            found = None if stats is None else stats.get(fqn)
            if found is not None and found.gram is not None:
                self._errors[fqn] = found.relative_error(layer.matrix(), layer.matrix(weight))
            self._computed.append((layer, pruned))

    def write(self) -> None:
        """What was computed since the last write."""
        for layer, pruned in self._computed:
            self._masks[layer.fqn] = pruned.mask
            if held := self._held.get(id(layer.weight)):
                self._set(held.mask, pruned.mask)
            self._set(layer.weight, pruned.applied(layer))
        self._computed.clear()

    def undo(self) -> None:
        for tensor, content in self._before:
            tensor.copy_(content)

    def finish(
        self,
        layers: Mapping[str, Layer],
        unseen: Mapping[str, Layer],
        unlooked: Mapping[str, nn.Parameter],
        keep_masks: bool,
    ) -> PruneReport:
        if keep_masks:
            hold_masks_(self._model, self._masks)
        else:
            for layer in layers.values():
                if held := self._held.get(id(layer.weight)):
                    held.remove()
        weights = all_weights(self._model)
        why = dict.fromkeys(unlooked, UNKNOWN) | {layer.name: UNSEEN for layer in unseen.values()}
        return PruneReport(
            tuple(
                PrunedLayer(
                    fqn, tuple(layer.weight.shape), int(layer.weight.count_nonzero()), self._errors.get(fqn)
                )
                for fqn, layer in layers.items()
            ),
            tuple(
                UnlookedWeight(name, tuple(weights[name].shape), why[name]) for name in weights if name in why
            ),
            sum(weight.numel() for weight in weights.values()),
            sum(count_nonzero(weight) for weight in weights.values()),
        )

    def _set(self, tensor: Tensor, content: Tensor) -> None:
        if self._undoable:
            self._before.append((tensor, tensor.detach().clone()))
        tensor.copy_(content)
