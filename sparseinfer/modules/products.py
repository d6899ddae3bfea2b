"""Tells whether modules called one after another are one or two sparse products that run as one block.

What decides is checked at every call: types, hooks, training mode, tensors, autograd. `ops.linear_block` then
computes them, with the layer norm of a residual sum if there is one, while results are in cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.modules.activations import activation_name
from sparseinfer.modules.linear import SparseLinear
from sparseinfer.modules.unwatched import is_unwatched

# As they are at import: somebody who replaces one later means something else.
_FORWARDS: dict[type, object] = {kind: kind.forward for kind in (nn.Dropout, nn.Identity, nn.LayerNorm)}
_PASSING = (nn.Dropout, nn.Identity)


def passes_on(step: object) -> bool:
    """Whether it is a module that in eval mode returns its input."""
    return type(step) in _PASSING


def products_of(steps: Sequence[Any], x: Any) -> list[ops.Product] | None:
    """What the steps compute of x, if that is one or two products; None: something else, or not so now.

    steps   a SparseLinear, an activation, modules that pass on; and the same again
    """
    if torch.compiler.is_compiling() or not _is_plain(x) or ops.watched(x) or _needs_grad(x):
        return None
    parts = list(_parts(steps))
    if not 1 <= len(parts) <= 2 or x.shape[-1:] != (parts[0][0].in_features,):
        return None
    if len(parts) == 2 and parts[1][0].in_features != parts[0][0].out_features:
        return None
    products = [_product(layer, followers) for layer, followers in parts]
    return None if None in products else products  # type: ignore[return-value]


def norm_of(norm: Any, residual: Any, x: Tensor, n: int) -> ops.ResidualNorm | None:
    """The norm of a sum of residual and products [..., n] of x; None: something else than that."""
    if type(norm) is not nn.LayerNorm or not _runs_its_forward(norm) or not _is_plain(residual):
        return None
    weight, bias = norm.weight, norm.bias
    if norm.normalized_shape != (n,) or _needs_grad(residual, weight, bias):
        return None
    if residual.dtype != x.dtype or residual.shape != (*x.shape[:-1], n) or not residual.is_contiguous():
        return None
    for vector in (weight, bias):
        if vector is not None and not (_is_on_cpu(vector) and vector.dtype in (x.dtype, torch.float32)):
            return None
    return ops.ResidualNorm(residual, weight, bias, norm.eps)


def _parts(steps: Sequence[Any]) -> Iterator[tuple[SparseLinear, Sequence[Any]]]:
    """Each SparseLinear and what follows it; nothing if the first step is another."""
    at = [i for i, step in enumerate(steps) if type(step) is SparseLinear]
    if at[:1] == [0]:
        for i, stop in zip(at, [*at[1:], len(steps)], strict=True):
            yield steps[i], steps[i + 1 : stop]


def _product(layer: SparseLinear, followers: Sequence[Any]) -> ops.Product | None:
    if not is_unwatched(layer) or _needs_grad(layer.bias):
        return None
    activation = layer.activation
    for step in followers:
        if passes_on(step):
            if not _runs_its_forward(step) or (step.training and type(step) is nn.Dropout):
                return None
            continue
        name = activation_name(step)
        if activation != "none" or name == "none" or (isinstance(step, nn.Module) and not is_unwatched(step)):
            return None
        activation = name
    return layer.product(activation)


def _is_plain(t: Any) -> bool:
    return type(t) is Tensor and _is_on_cpu(t)


def _is_on_cpu(t: Tensor) -> bool:
    return t.is_cpu and t.layout == torch.strided


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _runs_its_forward(module: nn.Module) -> bool:
    """Of exactly one of torch's classes: whether a call runs torch's forward and nothing else."""
    kind = type(module)
    return kind.forward is _FORWARDS[kind] and is_unwatched(module)
