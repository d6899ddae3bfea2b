"""Replaces max poolings that torch computes faster in channels_last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sparseinfer._timing import interleave, sample
from sparseinfer.convert.survey.recording import Recording
from sparseinfer.modules import ChannelsLastMaxPool2d

# For each pooling; and the share of its time that pays, as what is less may be noise. Chosen, not measured.
_BUDGET_S = 0.05
_SHARE_THAT_PAYS = 0.9


@dataclass(frozen=True)
class FasterPool:
    """The replacement of a max pooling, with the microseconds of both."""

    module: nn.Module
    dense_us: float
    us: float


@torch.inference_mode()
def faster_pool(pool: nn.Module, recording: Recording) -> FasterPool | None:
    """Times a max pooling whose input in the recorded run was in channels_last; None: not faster."""
    shapes = [shape for shape in recording.shapes.get(pool, ()) if len(shape) == 4]
    if type(pool) is not nn.MaxPool2d or pool.return_indices or not shapes:
        return None
    if pool._forward_hooks or pool._forward_pre_hooks or "forward" in vars(pool):
        return None
    x, other = sample(shapes[-1], torch.float32), ChannelsLastMaxPool2d(pool)
    times = interleave(
        {"as it is": [lambda: pool(x)], "other": [lambda: other(x)]}, budget_s=_BUDGET_S, min_rounds=3
    )
    dense_us, us = times["as it is"].min_us, times["other"].min_us
    return None if us > _SHARE_THAT_PAYS * dense_us else FasterPool(other.train(pool.training), dense_us, us)
