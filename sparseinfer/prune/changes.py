"""Applies pruning to a model: computes all changes first, writes them together, undoes them on error."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sparseinfer.prune.calibration.statistics import CalibrationStats, check_stats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.unlooked import UNKNOWN, UNSEEN, all_weights, count_nonzero
from sparseinfer.prune.masks.held import all_held_masks
from sparseinfer.prune.masks.hold import hold_masks_
from sparseinfer.prune.methods.method import Method, Pruned
from sparseinfer.prune.report import PrunedLayer, PruneReport, UnlookedWeight


class Changes:
    """All changes that pruning makes to a model: weights, and masks that it already holds.

    undoable  whether to keep copies of overwritten values, for `undo`
    """

    def __init__(self, model: nn.Module, *, undoable: bool) -> None:
        self._model = model
        self._undoable = undoable
        self._before: list[tuple[Tensor, Tensor]] = []
        self._held = {id(held.weight): held for held in all_held_masks(model)}
        self._computed: list[tuple[Layer, Pruned]] = []
        self._masks: dict[str, Tensor] = {}
        self._errors: dict[str, float] = {}

    def compute(self, layers: Mapping[str, Layer], method: Method, stats: CalibrationStats | None) -> None:
        """Run the method on these layers. ValueError: bad statistics, or new weights that are not finite."""
        check_stats(stats, layers, method.needs, method)
        for fqn, pruned in method.prune(layers, stats).items():
            layer, weight = layers[fqn], pruned.applied(layers[fqn])
            if pruned.weight is not None and not weight.isfinite().all():
                name = type(method).__name__
                raise ValueError(f"{layer.name}: expected finite weights of {name}, got NaN or infinite ones")
            inputs = None if stats is None else stats.get(fqn)
            if inputs is not None and inputs.gram is not None:
                self._errors[fqn] = inputs.relative_error(layer.matrix(), layer.matrix(weight))
            self._computed.append((layer, pruned))

    def write(self) -> None:
        """Write what was computed since the last write, into the weights and into existing masks."""
        for layer, pruned in self._computed:
            self._masks[layer.fqn] = pruned.mask
            if held := self._held.get(id(layer.weight)):
                self._set(held.mask, pruned.mask)
            self._set(layer.weight, pruned.applied(layer))
        self._computed.clear()

    def undo(self) -> None:
        """Restore the model's values from before the first write; only if `undoable`."""
        for tensor, content in self._before:
            tensor.copy_(content)

    def finish(
        self,
        layers: Mapping[str, Layer],
        unseen: Mapping[str, Layer],
        unlooked: Mapping[str, nn.Parameter],
        keep_masks: bool,
    ) -> PruneReport:
        """Attach the new masks, or remove existing ones, and return the report.

        layers    those that were pruned
        unseen    those that were not, because calibration cannot record their inputs
        unlooked  weights of unsupported kinds
        """
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
