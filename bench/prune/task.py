"""What `quality.py` prunes and measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A model with data.

    calibration  a seed's inputs of the model
    measure      the metric of a model on the test data
    ignore       layers that stay dense, as in `prune_`
    """

    model: nn.Module
    calibration: Callable[[int], list[Tensor]]
    measure: Callable[[nn.Module], float]
    metric: str
    calibration_text: str
    test_text: str
    ignore: Sequence[str] = ()
