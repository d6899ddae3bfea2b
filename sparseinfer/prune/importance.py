"""Importance: the score of each weight. The lowest scores are pruned first."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """Scores |w|, shape and device of the weight, in float32 (float64 for a float64 weight): exact.

    L1 and L2 magnitude order single weights alike, so there is one function for both.
    """
    return weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32))
