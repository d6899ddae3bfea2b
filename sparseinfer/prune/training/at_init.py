"""Pruning at initialisation, before any training: with one batch (SNIP) or without data (SynFlow)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._running import call
from sparseinfer.prune.apply import prune_, prune_layers
from sparseinfer.prune.calibration.batches import Forward
from sparseinfer.prune.calibration.calibrate import calibrate
from sparseinfer.prune.calibration.gradients import LossFn
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_fraction
from sparseinfer.prune.finalize import finalize_
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.selection import prunable_layers
from sparseinfer.prune.layers.unlooked import unknown_weights
from sparseinfer.prune.methods.criteria import Taylor
from sparseinfer.prune.methods.method import Method, Pruned
from sparseinfer.prune.methods.threshold import global_masks
from sparseinfer.prune.report import PruneReport
from sparseinfer.select import FilterFn, Patterns


def snip_(
    model: nn.Module,
    sparsity: float,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    forward: Forward | None = None,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> PruneReport:
    """Prune, over all layers together, the connections with the least effect on the loss: |w · ∂L/∂w|.

    Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity" (2019).

    sparsity                    in [0, 1), of all selected layers together
    batches, loss_fn, forward   see `calibrate`; one batch with some examples of each class is what the paper
                                takes
    filter_fn, targets, ignore  which layers, default all: see sparseinfer.select.select_modules

    Masks stay on the model until `finalize_`. After any error, see `calibrate` and `prune_`, it is unchanged.
    """
    select: dict[str, Any] = {"filter_fn": filter_fn, "targets": targets, "ignore": ignore}
    method = Taylor(sparsity, scope="global")
    stats = calibrate(model, batches, gram=False, loss_fn=loss_fn, forward=forward, **select)
    return prune_(model, method, stats=stats, **select)


def synflow_(
    model: nn.Module,
    sparsity: float,
    example_inputs: Any,
    *,
    iterations: int = 100,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> PruneReport:
    """Prune the connections with the least share in the flow from inputs to outputs, without data.

    In each iteration the model, with the absolute values of its weights, gets inputs of ones; a score is
    w · ∂(sum of its outputs)/∂w. Density shrinks by the same factor each time, so that no layer is pruned
    completely.
    Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (2020).

    sparsity                    in [0, 1), of all selected layers together
    example_inputs              one batch: a tensor, a tuple or a mapping. Only shapes count, and integers,
                                such as token ids
    filter_fn, targets, ignore  which layers, default all: see sparseinfer.select.select_modules

    Scores are computed on a copy in float64; kept weights keep their values. Scores are those of the paper if
    activations do not change positive numbers, such as ReLU. Masks stay on the model until `finalize_`. After
    an error the model is unchanged. TypeError or ValueError: an argument of the wrong kind, or a flow that
    overflows.
    """
    check_fraction("sparsity", sparsity)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations: expected an int of at least 1, got {iterations!r}")
    layers = prunable_layers(model, filter_fn, targets, ignore)
    twin = finalize_(copy.deepcopy(model)).double().eval().requires_grad_(True)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.abs_()
    weights = {fqn: twin.get_parameter(layer.name) for fqn, layer in layers.items()}
    inputs = _ones(example_inputs)
    masks: dict[str, Tensor] = {}
    for i in range(1, iterations + 1):
        flow = _total(call(twin, inputs))
        if not flow.isfinite():
            raise ValueError(f"example_inputs: expected a finite sum of outputs, got {flow.item()}")
        gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
        with torch.no_grad():
            scores = {
                fqn: torch.zeros_like(weight) if gradient is None else weight * gradient
                for (fqn, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            reached = sparsity if i == iterations else 1 - (1 - sparsity) ** (i / iterations)
            masks = global_masks(scores, dict.fromkeys(scores, 1), reached)
            for fqn, weight in weights.items():
                weight.masked_fill_(~masks[fqn], 0)
    return prune_layers(model, layers, _Given(masks), unlooked=unknown_weights(model, ignore))


@dataclass(frozen=True, eq=False)
class _Given(Method):
    """A method that prunes by masks that it is given, by the names of the layers."""

    masks: Mapping[str, Tensor]

    def prune(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Pruned]:
        return {fqn: Pruned(self.masks[fqn]) for fqn in layers}


def _ones(inputs: Any) -> Any:
    """Inputs of the same form, with ones for all numbers that are not integers."""
    if isinstance(inputs, Tensor):
        return torch.ones_like(inputs, dtype=torch.float64) if inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {name: _ones(value) for name, value in inputs.items()}
    return tuple(map(_ones, inputs)) if isinstance(inputs, (tuple, list)) else inputs


def _total(output: Any) -> Tensor:
    """The sum of all numbers in a model's output."""
    if isinstance(output, Tensor):
        return output.sum(dtype=torch.float64)
    values = output.values() if isinstance(output, Mapping) else output
    return torch.stack([_total(value) for value in values]).sum()
