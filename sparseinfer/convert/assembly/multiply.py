"""Makes the modules that multiply by a product's matrices, according to its plan."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparseinfer.convert.candidates.conv import sparse_conv
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.plan import Plan
from sparseinfer.convert.survey.survey import Product
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.modules import (
    FoldedLayer,
    Int8Linear,
    PrepackedLinear,
    SemiStructuredLinear,
    SharedInputLinear,
    SparseLinear,
    SparseOrDenseLinear,
)
from sparseinfer.ops.dense import DENSE_WAYS, PLAIN, PREPACKED_INT8, SEMI_STRUCTURED


def multipliers(decision: Decision) -> list[nn.Module | None]:
    """One module for each site of the product; None: the site's own module stays."""
    product, plan = decision.product, decision.plan
    if len(product.sites) > 1:
        return _of_several(product, plan)
    if not plan.is_sparse and plan.dense_way == PLAIN:
        return [None]
    norm = product.followers.batch_norm
    # oneDNN lays a weight out for a number of rows: the largest that was planned for.
    tokens = None if plan.is_sparse else plan.times[-1].tokens
    multiplier = _multiplier(product, plan, product.weights, tokens)
    if norm is None:
        return [multiplier]
    plain = _multiplier(product, decision.plain or plan, product.site_weights[0], tokens)
    return [FoldedLayer(plain, multiplier, norm)]


def _of_several(product: Product, plan: Plan) -> list[nn.Module | None]:
    """Sparse, one matrix for all of them; dense, each its own."""
    if plan.is_sparse:
        whole = _sparse_linear(plan, product.weights)
        biased = [weights.bias is not None for weights in product.site_weights]
        return list(SharedInputLinear.share(whole, product.sizes, biased))
    if plan.dense_way == PLAIN:
        return [None] * len(product.sites)
    return [_multiplier(product, plan, weights, None) for weights in product.site_weights]


def _multiplier(product: Product, plan: Plan, weights: Weights, tokens: int | None) -> nn.Module:
    """By these weights, which the plan's packings hold if it is sparse."""
    layer = product.sites[0].module
    if not plan.is_sparse:
        return _dense_linear(plan.dense_way, weights, tokens)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        packings = [packed for by_group in plan.packings for packed in by_group]
        return sparse_conv(layer, packings, weights.bias, plan.buckets, weights.weight.dtype)
    return _sparse_linear(plan, weights)


def _sparse_linear(plan: Plan, weights: Weights) -> SparseLinear:
    packings = [packed for (packed,) in plan.packings]
    options: dict[str, Any] = {"buckets": plan.buckets, "dtype": weights.weight.dtype}
    if not plan.dense_at:
        return SparseLinear(packings, weights.bias, **options)
    tokens = plan.times[-1].tokens if plan.times else None
    return SparseOrDenseLinear(
        packings, weights.bias, dense_way=plan.dense_way, dense_at=plan.dense_at, tokens=tokens, **options
    )


def _dense_linear(way: str, weights: Weights, tokens: int | None) -> nn.Module:
    """A dense weight in the form that a way named in `ops.dense` wants."""
    if way == SEMI_STRUCTURED:
        return SemiStructuredLinear(weights.weight, weights.bias)
    if way == PREPACKED_INT8:
        return Int8Linear(weights.weight, weights.bias, tokens=tokens)
    dtype = weights.weight.dtype
    held = weights.weight.to(DENSE_WAYS[way].rounds_to or dtype)
    return PrepackedLinear(held, weights.bias, tokens=tokens, dtype=dtype)
