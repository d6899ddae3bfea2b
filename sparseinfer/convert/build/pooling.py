"""Layers without weights that torch computes faster in another layout."""

from __future__ import annotations

import torch
from torch import nn

from sparseinfer._timing import Timing, interleave, sample
from sparseinfer.convert.recording import Recording
from sparseinfer.convert.report import LayerReport
from sparseinfer.modules import ChannelsLastMaxPool2d

_BUDGET_S = 0.05
_GAIN = 0.9  # what is less may be noise


@torch.inference_mode()
def faster_pool(fqn: str, pool: nn.Module, recording: Recording) -> tuple[nn.Module, LayerReport] | None:
    """What takes the place of a max pooling that the recorded run brought images to, if it is faster."""
    shapes = [shape for shape in recording.shapes.get(pool, ()) if len(shape) == 4]
    if type(pool) is not nn.MaxPool2d or pool.return_indices or not shapes:
        return None
    if pool._forward_hooks or pool._forward_pre_hooks or "forward" in vars(pool):
        return None
    x, other = sample(shapes[-1], torch.float32), ChannelsLastMaxPool2d(pool)
    times: dict[str, Timing] = interleave(
        {"now": [lambda: pool(x)], "other": [lambda: other(x)]}, budget_s=_BUDGET_S, min_rounds=3
    )
    now, then = times["now"].min_us, times["other"].min_us
    if then > _GAIN * now:
        return None
    row = LayerReport(
        layer=fqn,
        shape=(),
        sparsity=None,
        decision="channels_last",
        reason=f"{now / then:.1f}x in another layout: {then:.1f} us against {now:.1f} us",
    )
    return other.train(pool.training), row
