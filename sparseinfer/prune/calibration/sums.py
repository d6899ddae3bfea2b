"""Accumulates the sums of LayerStats for one layer, or for several with the same input."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparseinfer.prune.calibration.ranges import Ranges
from sparseinfer.prune.calibration.statistics import LayerStats
from sparseinfer.prune.layers.layer import Layer

# Elements of a convolution's input that are unfolded at once: 64 MiB in float32, more only for one sample.
# Chosen for the memory that it takes, not measured.
_PIECE = 2**24


class Sums:
    """Accumulator for the sums of LayerStats."""

    def __init__(self, layer: Layer, x: Tensor, *, gram: bool, ranges: bool) -> None:
        groups, _, k = layer.shape
        self._layer = layer
        self._tokens = 0
        self._sum_x = torch.zeros(groups, k, dtype=torch.float64, device=x.device)
        self._sq = torch.zeros_like(self._sum_x)
        self._dtype = torch.promote_types(x.dtype, torch.float32)
        self._gram = torch.zeros(groups, k, k, dtype=self._dtype, device=x.device) if gram else None
        self._ranges = Ranges(groups, k, x.device) if ranges else None

    def add(self, x: Tensor) -> None:
        """ValueError: x holds NaN or an infinity."""
        for piece in self._pieces(x.detach()):
            inputs = self._layer.unfold(piece.to(self._dtype))
            self._tokens += inputs.shape[1]
            self._sum_x += inputs.sum(1, dtype=torch.float64)
            self._sq += inputs.square().sum(1, dtype=torch.float64)
            if self._gram is not None:
                self._gram.baddbmm_(inputs.mT, inputs)
            if self._ranges is not None:
                self._ranges.add(inputs, piece)
        if not self._sq.isfinite().all():
            bad = x.numel() - int(x.isfinite().sum())
            raise ValueError(
                f"{self._layer.fqn}: expected finite inputs, got {bad} NaN or infinite of {x.numel()}"
            )

    def copy(self) -> Sums:
        """A copy to continue separately, with everything added so far."""
        copied = copy.copy(self)
        copied._sum_x, copied._sq = self._sum_x.clone(), self._sq.clone()
        copied._gram = None if self._gram is None else self._gram.clone()
        copied._ranges = None if self._ranges is None else self._ranges.copy()
        return copied

    def stats(self) -> LayerStats:
        stats = LayerStats(self._tokens, self._sum_x, self._sq, self._gram)
        if self._ranges is None:
            return stats
        ranges = self._ranges
        return replace(stats, low=ranges.low, high=ranges.high, counts=ranges.counts)

    def _pieces(self, x: Tensor) -> Sequence[Tensor]:
        """x, of a convolution some samples at a time: unfolded they are kh·kw times as large."""
        if not self._layer.is_conv or x.dim() < self._layer.weight.dim() or not len(x):
            return [x]
        return x.split(max(1, _PIECE // (x[0].numel() * self._layer.positions)))
