"""Makes the report's rows: what was decided for each matrix, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from sparseinfer._machine import private_bytes
from sparseinfer.convert.assembly.pooling import FasterPool
from sparseinfer.convert.assembly.regions import InRegion
from sparseinfer.convert.assembly.replacements import Build
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.plan import Plan
from sparseinfer.convert.report import LayerReport, units_of
from sparseinfer.convert.survey.followers import NOBODY, Followers
from sparseinfer.convert.survey.survey import Site, Survey
from sparseinfer.convert.timing.times import SOURCES
from sparseinfer.modules import SharedInputLinear, SparseLinear
from sparseinfer.modules.chain import held_bytes
from sparseinfer.ops import Layout
from sparseinfer.ops.cpu.kernels import kernels
from sparseinfer.ops.cpu.network import Step
from sparseinfer.ops.cpu.packing import describe
from sparseinfer.ops.dense import DENSE_WAYS
from sparseinfer.ops.names import STORAGES


def rows_of(survey: Survey, decisions: Sequence[Decision], built: Build) -> tuple[LayerReport, ...]:
    """The rows in the order of the model, poolings last."""
    by_fqn: defaultdict[str, list[LayerReport]] = defaultdict(list)
    for decision in decisions:
        for site in decision.product.sites:
            by_fqn[site.fqn].append(_row(decision, site, built))
    for fqn, reason in survey.refused.items():
        by_fqn[fqn].append(_refused(fqn, survey.modules[fqn], reason))
    for fqn, pool in built.pools.items():
        by_fqn[fqn].append(_pool(fqn, pool))
    return tuple(row for fqn in (*survey.modules, *survey.pools) for row in by_fqn[fqn])


def in_regions(rows: Sequence[LayerReport], regions: Mapping[str, InRegion]) -> tuple[LayerReport, ...]:
    """The rows, which say so where a layer runs in a region, and how."""

    def told(row: LayerReport) -> LayerReport:
        placed = regions.get(row.layer)
        if placed is None:
            return row
        place = f"the region {placed.region}" if placed.region else "a region that is the whole model"
        return replace(row, reason=f"{row.reason}; runs in {place}{_step(placed.step)}")

    return tuple(map(told, rows))


def _step(step: Step | None) -> str:
    """Kernel, packing and panel of a step that multiplies; a plan names those of layers by themselves."""
    if step is None or not step.packings:
        return ""
    kernel, info = kernels()[step.kernel], describe(step.packings[0])
    panel = f", panels of {info.panel} columns" if kernel.panelled else ""
    return f" by {kernel.base_name}, packing {info.packing}{panel}"


def _row(decision: Decision, site: Site, built: Build) -> LayerReport:
    """Of one site's matrix; its times are the product's, by its share of the rows."""
    product, plan = decision.product, decision.plan
    weights = site.matrices[product.name].weights
    size, (n, k) = len(weights.weight), product.weights.weight.shape
    share = size / n
    module = built.multipliers.get((site, product.name))
    row = LayerReport(
        layer=f"{site.fqn}:{product.name}" if product.name else site.fqn,
        shape=(size, k),
        sparsity=weights.sparsity,
        pattern=weights.pattern,
        decision="sparse" if plan.is_sparse else plan.dense_kind,
        reason=_reason(decision, site, module),
        kernels=plan.kernels,
        units=() if product.weights.on_gpu else units_of(plan.kernels),
        tokens=tuple(times.tokens for times in plan.times),
        dense_us=tuple(times.dense_us * share for times in plan.times),
        sparse_us=tuple(
            times.us(chosen) * share for times, chosen in zip(plan.times, plan.chosen, strict=False)
        ),
        source=max((times.source for times in plan.times), key=SOURCES.index, default=""),
        dense_nbytes=weights.nbytes,
        nbytes=weights.nbytes if module is None else held_bytes(module),
        dtype=_dtypes(plan, weights.weight.dtype),
    )
    if site in built.left_dense:
        return row.left_dense(built.left_dense[site], _name(weights.weight.dtype))
    return row


def _dtypes(plan: Plan, own: torch.dtype) -> str:
    """The dtypes of weights and activations in the products of a layer whose own dtype is `own`."""
    if plan.dtype is None:
        return _name(DENSE_WAYS[plan.dense_way].rounds_to or own)
    storages = (STORAGES.get(layout.storage) for layout in plan.chosen if isinstance(layout, Layout))
    read_as = [own if storage is None else storage.x_dtype or own for storage in storages]
    both = ((plan.dtype, x_dtype) for x_dtype in read_as or [own])
    texts = (_name(w) if w == x else f"{_name(w)} x {_name(x)}" for w, x in both)
    return ", ".join(dict.fromkeys(texts))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _reason(decision: Decision, site: Site, module: nn.Module | None) -> str:
    product, reason = decision.product, decision.plan.reason
    if not decision.plan.is_sparse and decision.plan.chosen and not product.weights.on_gpu:
        reason = f"{reason}{_in_cache(product.weights.weight.nbytes)}"
    if isinstance(module, SharedInputLinear):
        others = [other.fqn.rsplit(".", 1)[-1] for other in product.sites if other is not site]
        reason = f"{reason}, one matrix with {', '.join(others)}"
    if module is not None and product.followers is not NOBODY:
        following = _following(product.followers, normed=type(module) is SparseLinear)
        reason = f"{reason}, with {following}" if following else reason
    return reason


def _in_cache(nbytes: int) -> str:
    """Where reading fewer bytes gains little, because the dense weight stays in the core's own cache."""
    size = private_bytes()
    return f"; its {nbytes >> 10} KiB fit in L2 ({size >> 10} KiB)" if nbytes <= size else ""


def _following(after: Followers, *, normed: bool) -> str:
    names = ["its batch norm"] if after.batch_norm is not None else []
    names += [after.activation] if after.activation != "none" else []
    return " and ".join([*names, *(["residual and layer norm"] if after.normed and normed else [])])


def _refused(fqn: str, module: nn.Module, reason: str) -> LayerReport:
    parameters = list(module.parameters())
    nbytes = sum(parameter.nbytes for parameter in parameters)
    shape = tuple(parameters[0].shape) if parameters else ()
    dtype = _name(parameters[0].dtype) if parameters else ""
    return LayerReport(fqn, shape, None, "dense", reason, dense_nbytes=nbytes, nbytes=nbytes, dtype=dtype)


def _pool(fqn: str, pool: FasterPool) -> LayerReport:
    gain = pool.dense_us / pool.us
    reason = f"{gain:.1f}x in another layout: {pool.us:.1f} us against {pool.dense_us:.1f} us"
    return LayerReport(fqn, (), None, "channels_last", reason)
