"""Sums a loss's gradients over the batches of a calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparseinfer.prune.calibration.statistics import CalibrationStats, LayerStats
from sparseinfer.prune.layers.layer import Layer

# (output of the model, batch) -> a scalar that depends on the weights
LossFn = Callable[[Any, Any], Tensor]


class Gradients:
    """Sums ∂loss/∂w over the batches. In this context gradients are enabled for the layers' weights."""

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
        gradients = torch.autograd.grad(loss, list(self._weights.values()), allow_unused=True)
        for (fqn, total), grad in zip(self._sums.items(), gradients, strict=True):
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
