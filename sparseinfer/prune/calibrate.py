"""`calibrate`: what the layers of a model are given, and how a loss depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._progress import Progress
from sparseinfer._running import call, evaluating
from sparseinfer.prune.collect import Collector
from sparseinfer.prune.layers import Layer, prunable_layers
from sparseinfer.prune.statistics import CalibrationStats, LayerStats
from sparseinfer.select import FilterFn, Patterns

Forward = Callable[[nn.Module, Any], Any]
LossFn = Callable[[Any, Any], Tensor]


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    gram: bool = True,
    loss_fn: LossFn | None = None,
    forward: Forward | None = None,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
    progress: bool = True,
) -> CalibrationStats:
    """Run the model over the batches once and sum up what every pruning method needs.

    batches                     each a tensor or a tuple (positional arguments of the model) or a mapping
                                (keyword arguments), on the model's device
    gram                        whether to keep Gram matrices, for solvers and the error of each layer; norms
                                are always kept
    loss_fn(output, batch)      a scalar, whose gradients are kept too, for Gradient and Taylor
    forward(model, batch)       runs the model instead of the call above
    filter_fn, targets, ignore  which layers, default all: see sparseinfer.select.select_modules
    progress                    whether a terminal shows a progress bar

    Batches are dropped one by one. What stays in memory does not grow with their number: 4·groups·k² bytes of
    each different layer input for its Gram matrix (8 of float64), 16·groups·k bytes for norms and, with a
    loss_fn, 4 bytes for each weight. Every row of an input counts, padding too.

    The model runs in eval mode, without gradients unless there is a loss_fn, and is left as it was, after
    an error too.

    TypeError or ValueError: an argument of the wrong kind; no batch; a NaN or infinite input or loss; a
    selected layer that is never called. The message names it. Layers whose inputs no call shows, such as a
    recurrent product of nn.LSTM (`Layer.is_seen`), have gradients alone, where there is a loss_fn.
    """
    layers = prunable_layers(model, filter_fn, targets, ignore)
    return statistics_of(
        model, layers, batches, gram=gram, loss_fn=loss_fn, forward=forward, progress=progress
    )


def statistics_of(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Iterable[Any],
    *,
    gram: bool = True,
    loss_fn: LossFn | None = None,
    forward: Forward | None = None,
    progress: bool = True,
) -> CalibrationStats:
    """`calibrate` for layers that are selected already."""
    batches = checked_batches(batches)
    forward = forward or call
    gradients = None if loss_fn is None else _Gradients(layers, loss_fn)
    total = len(batches) if isinstance(batches, Sized) else None
    with (
        evaluating(model),
        Progress("calibrating", total, shown=progress) as bar,
        Collector(layers, gram=gram) as collector,
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


def checked_batches(batches: Iterable[Any]) -> Iterable[Any]:
    """TypeError: one batch instead of several."""
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        hint = "a single batch goes into a list"
        raise TypeError(f"batches: expected an iterable of batches, got {type(batches).__name__} ({hint})")
    return batches


def every_batch(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; ValueError in the end if there was none."""
    found = False
    for batch in batches:
        found = True
        yield batch
    if not found:
        raise ValueError("batches: expected at least one, got none (was an iterator used before?)")


class _Gradients:
    """Sums of ∂loss/∂w over the batches. While it is open, gradients are enabled for the layers' weights."""

    def __init__(self, layers: Mapping[str, Layer], loss_fn: LossFn) -> None:
        self._loss_fn = loss_fn
        self._layers = layers
        self._weights = {fqn: layer.weight for fqn, layer in layers.items()}
        self._sums = {
            fqn: torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)).detach()
            for fqn, weight in self._weights.items()
        }

    def __enter__(self) -> None:
        self._required = {weight: weight.requires_grad for weight in self._weights.values()}
        for weight in self._required:
            weight.requires_grad_(True)
        self._enabled = torch.enable_grad()
        self._enabled.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._enabled.__exit__(*error)
        for weight, required in self._required.items():
            weight.requires_grad_(required)

    def add(self, output: Any, batch: Any) -> None:
        loss = self._loss_fn(output, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss_fn: expected a scalar tensor that depends on the weights, got {got}")
        if not loss.isfinite():
            raise ValueError(f"loss_fn: expected a finite loss, got {float(loss.detach())}")
        # autograd.grad leaves the parameters' own .grad alone.
        found = torch.autograd.grad(loss, list(self._weights.values()), allow_unused=True)
        for (fqn, total), grad in zip(self._sums.items(), found, strict=True):
            if grad is not None:
                total += grad
                if not grad.isfinite().all():
                    raise ValueError(f"{fqn}: expected finite gradients, got NaN or infinite ones")

    def joined(self, stats: CalibrationStats) -> CalibrationStats:
        return CalibrationStats(
            {fqn: replace(stats.get(fqn, self._nothing(fqn)), grad=grad) for fqn, grad in self._sums.items()}
        )

    def _nothing(self, fqn: str) -> LayerStats:
        """Of a layer whose inputs are not seen: none were counted."""
        layer = self._layers[fqn]
        groups, _, k = layer.shape
        zeros = torch.zeros(groups, k, dtype=torch.float64, device=layer.weight.device)
        return LayerStats(0, zeros, zeros)
