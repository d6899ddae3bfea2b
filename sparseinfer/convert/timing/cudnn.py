"""Compares recurrent layers on a GPU with torch's own, whose steps cuDNN computes in one call."""

from __future__ import annotations

import math

import torch
from torch import nn

from sparseinfer._timing import Call, interleave, sample, waited_for
from sparseinfer.convert.survey.recording import Recording, spread

# For each shape. Chosen, not measured: some ten calls of a layer of 10 ms.
_BUDGET_S = 0.1


@torch.inference_mode()
def slower_than_cudnn(dense: nn.RNNBase, sparse: nn.Module, recording: Recording) -> str | None:
    """Why torch's own layer stays; None: the sparse layer is faster for the inputs of the recorded run.

    The mean over the input shapes of sparse time / dense time has to be below 1, as for one matrix.
    """
    shapes = spread(sorted(recording.shapes.get(dense, ()), key=math.prod))
    if not shapes:
        return "no example input reached it, to compare with cuDNN's layer"
    ratios = [_ratio(dense, sparse, shape) for shape in shapes]
    return None if sum(ratios) < len(ratios) else f"cuDNN's layer is faster: {max(ratios):.1f}x"


def _ratio(dense: nn.RNNBase, sparse: nn.Module, shape: tuple[int, ...]) -> float:
    weight = next(dense.parameters())
    x = sample(shape, weight.dtype).to(weight.device)

    def call(module: nn.Module) -> list[Call]:
        return [waited_for(lambda: module(x), weight.device)]

    times = interleave({"dense": call(dense), "sparse": call(sparse)}, budget_s=_BUDGET_S, min_rounds=3)
    return times["sparse"].min_us / times["dense"].min_us
