"""Ranges: the smallest and largest inputs of a layer, and how often each value occurred."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

# Of bfloat16: inputs are counted by their value in it, so that counts of any inputs have the same places.
_VALUES = 2**16


class Ranges:
    """Accumulator for `low`, `high` and `counts` of LayerStats."""

    def __init__(self, groups: int, k: int, device: torch.device) -> None:
        self.low = torch.full((groups, k), torch.inf, device=device)
        self.high = torch.full((groups, k), -torch.inf, device=device)
        self.counts = torch.zeros(_VALUES, dtype=torch.int64, device=device)

    def add(self, inputs: Tensor, x: Tensor) -> None:
        """inputs [groups, tokens, k], and the x that they were unfolded from."""
        if not inputs.shape[1]:
            return
        low, high = inputs.aminmax(dim=1)
        self.low, self.high = torch.minimum(self.low, low.float()), torch.maximum(self.high, high.float())
        places = x.to(torch.bfloat16).reshape(-1).view(torch.int16).long() & (_VALUES - 1)
        self.counts += places.bincount(minlength=_VALUES)

    def copy(self) -> Ranges:
        copied = copy.copy(self)
        copied.counts = self.counts.clone()
        return copied


def quantiles(counts: Tensor, low: float, high: float) -> tuple[float, float]:
    """The values below which these fractions of the counted inputs lie, to the precision of bfloat16."""
    patterns = torch.arange(_VALUES, device=counts.device).to(torch.int16)
    values, order = patterns.view(torch.bfloat16).float().sort()
    finite = values.isfinite()
    values, totals = values[finite], counts[order][finite].cumsum(0)
    places = torch.tensor([low, high], dtype=torch.float64, device=counts.device) * totals[-1]
    first, last = torch.searchsorted(totals.double(), places).clamp(max=len(values) - 1).tolist()
    return float(values[first]), float(values[last])
