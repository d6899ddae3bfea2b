"""Replaces max poolings that torch computes faster in channels_last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sparseinfer._timing import sample
from sparseinfer.convert.survey.recording import Recording
from sparseinfer.convert.timing.ranking import rank
from sparseinfer.modules import ChannelsLastMaxPool2d

# For each pooling, longer where it is a close call; and the share of its time that pays, as for a dense
# weight that is held otherwise. Chosen, not measured.
_BUDGET_S = 0.05
_SHARE_THAT_PAYS = 0.97


@dataclass(frozen=True)
class FasterPool:
    """The replacement of a max pooling, with the microseconds of both."""

    module: nn.Module
    dense_us: float
    us: float


@torch.inference_mode()
def faster_pool(pool: nn.Module, recording: Recording) -> FasterPool | None:
    """Times a max pooling whose input in the recorded run was in channels_last; None: not surely faster."""
    shapes = [shape for shape in recording.shapes.get(pool, ()) if len(shape) == 4]
    if type(pool) is not nn.MaxPool2d or pool.return_indices or not shapes:
        return None
    if pool._forward_hooks or pool._forward_pre_hooks or "forward" in vars(pool):
        return None
    x, other = sample(shapes[-1], torch.float32), ChannelsLastMaxPool2d(pool)
    ranking = rank({"dense": [lambda: pool(x)], "other": [lambda: other(x)]}, budget_s=_BUDGET_S)
    dense_us, us = ranking.us["dense"], ranking.us["other"]
    if not ranking.is_sure or us >= _SHARE_THAT_PAYS * dense_us:
        return None
    return FasterPool(other.train(pool.training), dense_us, us)
