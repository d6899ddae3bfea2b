"""Layers of several products against torch's own, which computes them in one call.

Their products were compared with Linears one by one. That says nothing of what torch saves by knowing the
whole layer: cuDNN's and oneDNN's recurrent layers compute all steps at once, and attention has a fast path.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import nn

from sparseinfer._timing import Call, sample, waited_for
from sparseinfer.convert.survey.recording import Recording, spread
from sparseinfer.convert.timing.ranking import Ranking, rank

Whole: TypeAlias = "nn.RNNBase | nn.MultiheadAttention"

# For each shape, longer where it is a close call. Chosen, not measured: some ten calls of a layer of 10 ms.
_BUDGET_S = 0.1
# Steps of an input where no example says how many.
_STEPS = 16


@torch.inference_mode()
def slower_than_torch(
    dense: Whole, layer: nn.Module, recording: Recording, *, on_gpu: bool = False
) -> str | None:
    """Why torch's own layer is to stay; None: the one that would take its place is faster.

    For the shapes of inputs that the recorded run brought, the sum of its times over torch's has to be below
    their number, as for one product; and each comparison has to be sure, because torch's layer is what the
    user has. Without a run, for one input of 16 steps on the CPU.
    """
    shapes = spread(sorted(recording.shapes.get(dense, ()), key=math.prod))
    if not shapes and on_gpu:
        return "no example input reached it, to compare with cuDNN's layer"
    rankings = [_ranking(dense, layer, shape, on_gpu) for shape in shapes or [_default_shape(dense)]]
    ratios = [ranking.us["layer"] / ranking.us["dense"] for ranking in rankings]
    whose = "cuDNN's" if on_gpu else "torch's whole"
    if sum(ratios) >= len(ratios):
        return f"{whose} layer is faster: {max(ratios):.1f}x"
    return None if all(ranking.is_sure for ranking in rankings) else f"not surely faster than {whose} layer"


def _default_shape(dense: Whole) -> tuple[int, ...]:
    features = dense.input_size if isinstance(dense, nn.RNNBase) else dense.embed_dim
    return (1, _STEPS, features) if dense.batch_first else (_STEPS, 1, features)


def _ranking(dense: Whole, layer: nn.Module, shape: tuple[int, ...], on_gpu: bool) -> Ranking:
    weight = next(dense.parameters())
    x = sample(shape, weight.dtype).to(weight.device)
    calls: dict[str, Call] = {"dense": lambda: dense(x), "layer": lambda: layer(x)}
    if isinstance(dense, nn.MultiheadAttention):
        # In the mode that models use it in: few ask for the weights of attention.
        calls = {
            "dense": lambda: dense(x, x, x, need_weights=False),
            "layer": lambda: layer(x, x, x, need_weights=False),
        }
    if on_gpu:
        calls = {name: waited_for(call, weight.device) for name, call in calls.items()}
    return rank({name: [call] for name, call in calls.items()}, budget_s=_BUDGET_S)
