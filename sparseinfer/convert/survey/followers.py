"""Finds what can be fused into a layer: a following activation, and on request a batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparseinfer.convert.survey.chains import OfSum, chains_in
from sparseinfer.convert.survey.recording import Recording
from sparseinfer.convert.survey.weights import Weights, class_of
from sparseinfer.modules.activations import activation_name
from sparseinfer.modules.chain import affine_of
from sparseinfer.modules.products import passes_on
from sparseinfer.modules.unwatched import is_unwatched

# The batch norm whose channels are those of the layer, and the dimensions of an input for which they are.
_NORMS = {nn.Linear: (nn.BatchNorm1d, 2), nn.Conv1d: (nn.BatchNorm1d, 3), nn.Conv2d: (nn.BatchNorm2d, 4)}


@dataclass(frozen=True)
class Followers:
    """The modules and functions that a layer's result goes straight into anywhere in the model.

    normed   at last a residual is added, and the sum goes into a layer norm
    """

    batch_norm: nn.Module | None = None
    activation: str = "none"
    normed: bool = False


NOBODY = Followers()


def followers(
    model: nn.Module, recording: Recording, *, fold: bool, fuse: bool
) -> Mapping[nn.Module, Followers]:
    """For each Linear and convolution: a batch norm to fold if `fold`, and an activation if `fuse`.

    The recording only decides whether folding is worth it; every call checks whether it is correct.
    """

    def joins(first: Any, then: Any) -> bool:
        if then is None:
            return False
        if isinstance(then, OfSum):
            return fuse and type(then.called) is nn.LayerNorm
        if fuse and passes_on(then) and (isinstance(first, nn.Linear) or activation_name(first) != "none"):
            return True
        if isinstance(first, nn.Module) and fold and _foldable(first, then, recording):
            return True
        return fuse and isinstance(first, nn.Module) and activation_name(then) != "none"

    by_layer: dict[nn.Module, Followers] = {}
    for module in model.modules():
        for layer, *rest in chains_in(module, joins).steps:
            norm = rest[0] if fold and _foldable(layer, rest[0], recording) else None
            last = rest[0] if norm is None else rest[1] if len(rest) > 1 else None
            name = "none" if last is None else activation_name(last)
            by_layer.setdefault(layer, Followers(norm, name, type(rest[-1]) is nn.LayerNorm))
    return by_layer


def folded(weights: Weights, batch_norm: nn.Module) -> Weights:
    """The weights that compute batch_norm(W x + bias) in eval mode; in double, then rounded."""
    scale, shift = affine_of(batch_norm)
    bias = shift if weights.bias is None else weights.bias.double() * scale + shift
    weight = weights.weight.double() * scale[:, None]
    return Weights(weight.to(weights.weight.dtype), bias.to(weights.weight.dtype))


def _foldable(layer: Any, norm: Any, recording: Recording) -> bool:
    """Whether a batch norm in eval mode is a factor and a term for each row of the layer's weight."""
    kind, dims = _NORMS.get(class_of(layer), (None, 0)) if isinstance(layer, nn.Module) else (None, 0)
    if kind is None or type(norm) is not kind or norm.training or not is_unwatched(norm):
        return False
    if norm.running_mean is None or norm.running_var is None or norm.running_mean.is_meta:
        return False
    rows = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    shapes = recording.shapes.get(layer, ())
    reached = any(len(shape) == dims for shape in shapes)
    finite = reached and all(bool(torch.isfinite(t).all()) for t in affine_of(norm))
    return finite and norm.num_features == rows
