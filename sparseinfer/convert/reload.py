"""Converts a model as a Record says: by its plans, or planned anew for the same calls, without running it.

The weights may still be in a file: then they are on meta, and a `Source` gives those of one product at a
time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer._progress import Progress
from sparseinfer.convert.assembly.places import replace_
from sparseinfer.convert.assembly.replacements import Known, build
from sparseinfer.convert.assembly.surroundings import finish_, leave_nested_tensors, unfinish_
from sparseinfer.convert.decisions import Decision, decide
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.convert.plan import Plan
from sparseinfer.convert.record import Record, StoredDecision, StoredPlan, attach_record, record_of
from sparseinfer.convert.report import attach
from sparseinfer.convert.rows import rows_of
from sparseinfer.convert.survey.recording import Recording
from sparseinfer.convert.survey.survey import (
    Product,
    Site,
    Survey,
    products_of,
    sites_of,
    with_weights_of_now,
)
from sparseinfer.convert.survey.weights import Weights, class_of
from sparseinfer.convert.timing.times import Times
from sparseinfer.formats import BSR, CSR
from sparseinfer.formats.dtypes import WEIGHT_DTYPE_NAMES, WEIGHT_DTYPES
from sparseinfer.modules import pack_groups
from sparseinfer.modules.groups import join_rows
from sparseinfer.ops.dense import DENSE_WAYS, PLAIN

# Layers whose weight in a file is the matrix that is planned.
_STORED_AS_MATRIX = (nn.Linear, nn.Conv1d, nn.Conv2d)

Planning = Literal["stored", "predict", "measure"]


class Source(Protocol):
    """Where weights come from that are on meta."""

    def csr(self, layer: str) -> CSR | None:
        """The weight of a layer named `weight`, if it is stored sparse."""

    def held(self, layers: Sequence[str]) -> AbstractContextManager[None]:
        """In the block these layers have their weights; afterwards those on meta before are on meta again."""

    def forget(self, layers: Sequence[str]) -> None:
        """The memory of what was read of these layers is not needed any more."""

    def keep(self, layer: str) -> None:
        """Give a layer its weights for good."""

    def packings(self, product: str) -> Sequence[Tensor]:
        """Packings that were made of a product by this record before, checked; () if there are none."""

    def keep_packings(self, product: str, packings: Sequence[Tensor]) -> None:
        """Tell of packings that a later load may have. They are not written to."""


def check_fits(model: nn.Module, record: Record) -> None:
    """ValueError unless the model has the layers that the record names, of kinds that convert takes."""
    modules = _layers(model, [*record.layers, *record.pools])
    sites, refused = sites_of({fqn: modules[fqn] for fqn in record.layers}, {})
    for fqn, reason in refused.items():
        raise ValueError(f"{fqn}: expected a layer that was converted, got one that cannot be ({reason})")
    widths: dict[int, int] = {}
    for site in sites:
        calls = record.layers[site.fqn]
        for shape in calls.shapes:
            _check_takes(site, shape)
        if site.kind.shares_input and calls.inputs is not None:
            k = site.matrices[""].weights.weight.shape[1]
            if widths.setdefault(calls.inputs, k) != k:
                raise ValueError(f"{site.fqn}: expected an input of {widths[calls.inputs]} features, got {k}")
    for fqn in record.pools:
        if not isinstance(modules[fqn], nn.MaxPool2d):
            raise ValueError(f"{fqn}: expected nn.MaxPool2d, got {type(modules[fqn]).__name__}")
    unknown = [fqn for decision in record.decisions for fqn in decision.layers if fqn not in record.layers]
    if unknown:
        raise ValueError(f"{unknown[0]}: expected a layer of the conversion, got another")


def _check_takes(site: Site, shape: tuple[int, ...]) -> None:
    """ValueError unless the layer takes an input of that shape."""
    try:
        counts = [matrix.tokens(shape) for matrix in site.matrices.values()]
    except (RuntimeError, ValueError, IndexError):
        counts = [0]
    if not all(counts):
        raise ValueError(f"{site.fqn}: expected the shape of an input that it takes, got {shape}")


def reload_(model: nn.Module, record: Record, planning: Planning, source: Source) -> nn.Module:
    """Convert in place; returns the model, or what replaces it if it is a layer itself.

    planning   "stored": as the record says, where this machine has the kernels, the rest predicted;
               "predict" and "measure": plan anew
    """
    # Layers that went back to dense have plans all the same: their weights would be read twice.
    for fqn in record.layers:
        if planning != "stored" or fqn in record.left_dense:
            source.keep(fqn)
    survey = _survey(model, record)
    options = replace(record.options, measure=planning == "measure")
    products = products_of(model, survey, fuse=options.fuse, fold=options.fold_batch_norm)
    known: Known | None = None
    decisions: Iterable[Decision]
    if planning == "stored":
        known = Known(record.left_dense, record.pools)
        decisions = _Stored(survey, record, options, source).decisions(products)
    else:
        decisions = decide(products, survey, options)
    built = build(model, survey, decisions, options, known)
    if isinstance(decisions, list):
        record = record_of(survey, decisions, built, options, rows_of(survey, decisions, built))
    replace_(model, built.replacements)
    new = built.replacements.get(model, model)
    try:
        finish_(new, built, options)
    except BaseException:
        unfinish_(new)
        replace_(model, {new: old for old, new in built.replacements.items()})
        raise
    leave_nested_tensors(new)
    attach(new, record.rows)
    attach_record(new, record)
    return new


def _layers(model: nn.Module, fqns: Sequence[str]) -> dict[str, nn.Module]:
    modules = {}
    for fqn in fqns:
        try:
            modules[fqn] = model.get_submodule(fqn)
        except AttributeError:
            raise ValueError(f"{fqn}: expected a layer of that name in the model, got none") from None
    return modules


def _survey(model: nn.Module, record: Record) -> Survey:
    """The survey that the record is of."""
    modules = _layers(model, list(record.layers))
    sites, refused = sites_of(modules, {})
    called = [fqn for fqn, calls in record.layers.items() if calls.shapes or calls.inputs is not None]
    recording = Recording(
        frozenset(modules[fqn] for fqn in called),
        {modules[fqn]: record.layers[fqn].shapes for fqn in called if record.layers[fqn].shapes},
        {
            modules[fqn]: (record.layers[fqn].inputs,)
            for fqn in called
            if record.layers[fqn].inputs is not None
        },
        frozenset(modules[fqn] for fqn in called if record.layers[fqn].channels_last),
    )
    return Survey(modules, _layers(model, list(record.pools)), sites, refused, recording)


@dataclass(frozen=True)
class _Stored:
    """Makes decisions from a record's."""

    survey: Survey
    record: Record
    options: ConvertOptions
    source: Source

    def decisions(self, products: Sequence[Product]) -> Iterator[Decision]:
        """In order; while a decision is out, its product has its weights."""
        known = {(decision.layers, decision.matrix): decision for decision in self.record.decisions}
        with Progress("packing", len(products)) as progress:
            for product in products:
                layers = tuple(site.fqn for site in product.sites)
                yield from self._decision(product, layers, known.get((layers, product.name)))
                progress.advance()

    def _decision(
        self, product: Product, layers: Sequence[str], known: StoredDecision | None
    ) -> Iterator[Decision]:
        if len(layers) > 1 and any(layer in self.record.left_dense for layer in layers):
            # They share one matrix or have each its own.
            self._keep(layers)
            yield Decision(product, Plan("stored"))
            return
        folds = product.followers.batch_norm is not None
        fmt = None
        if known is not None and _runs_here(known.plan, product) and _runs_here(known.plain, product):
            if kept := self._kept_plan(known.plan, product, layers):
                yield Decision(product, kept)
                return
            fmt = None if folds or product.name else self._stored_csr(product, known.plan)
            # Of a folded product both plans; and int8 as it was rounded, which no dense weight tells.
            is_whole = not folds or not known.plan.buckets or known.plain is not None
            known = known if is_whole and (fmt is not None or not known.has_integers) else None
        else:
            known = None
        if known is None:
            self._keep(layers)
            product = with_weights_of_now(product)
            yield from decide([product], self.survey, replace(self.options, measure=False))
            return
        if fmt is not None:
            planned = _plan(known.plan, fmt, product)
            self._keep_packings(product, layers, planned)
            yield Decision(product, planned)
            self.source.forget(layers)
            return
        stays = not known.plan.buckets and known.plan.dense_way == PLAIN
        if stays or product.name:
            # Layers of several matrices, of which some may stay dense, are put together at the end.
            self._keep(layers)
        with self.source.held(layers):
            product = with_weights_of_now(product)
            planned = _plan(known.plan, _format(product.weights, known.plan), product)
            self._keep_packings(product, layers, planned)
            plain = None
            if known.plain is not None:
                plain = _plan(known.plain, _format(product.site_weights[0], known.plain), product)
            yield Decision(product, planned, plain)
        # The survey keeps none of the weights that were there for a moment.
        with_weights_of_now(product)

    def _kept_plan(self, plan: StoredPlan, product: Product, layers: Sequence[str]) -> Plan | None:
        """The plan with packings of an earlier load, if those are all that is needed of the weights."""
        if not plan.buckets or not _is_packed_alone(product):
            return None
        found = self.source.packings(_key(product, layers))
        groups = getattr(product.sites[0].module, "groups", 1)
        if len(found) != len(plan.layouts) * groups:
            return None
        n, k = product.weights.weight.shape
        for i, packed in enumerate(found):
            info, which = ops.describe(packed), i // groups
            expected = (n // groups, k, plan.dtype, plan.layouts[which], plan.blocks[which])
            if (info.n, info.k, info.dtype, ops.Layout.of(info), info.block_size) != expected:
                return None
        return _of_packings(plan, [tuple(found[i : i + groups]) for i in range(0, len(found), groups)])

    def _keep_packings(self, product: Product, layers: Sequence[str], planned: Plan) -> None:
        if planned.is_sparse and _is_packed_alone(product):
            every = [packed for by_group in planned.packings for packed in by_group]
            self.source.keep_packings(_key(product, layers), every)

    def _keep(self, layers: Sequence[str]) -> None:
        for layer in layers:
            self.source.keep(layer)

    def _stored_csr(self, product: Product, plan: StoredPlan) -> CSR | None:
        """The weight as it is in the file, if that is what the plan packs."""
        if not plan.buckets or any(block != (1, 1) for block in plan.blocks):
            return None
        if any(class_of(site.module) not in _STORED_AS_MATRIX for site in product.sites):
            return None
        parts = [self.source.csr(site.fqn) for site in product.sites]
        found = [
            part for part in parts if part is not None and WEIGHT_DTYPE_NAMES.get(part.dtype) == plan.dtype
        ]
        if len(found) < len(parts):
            return None
        joined = join_rows(found)
        return joined if isinstance(joined, CSR) else None


def _is_packed_alone(product: Product) -> bool:
    """Whether a product's weight is in a file alone, and its layers need nothing of it beside packings."""
    in_file = all(weights.weight.is_meta for weights in product.site_weights)
    return in_file and not product.name and product.followers.batch_norm is None


def _key(product: Product, layers: Sequence[str]) -> str:
    """Names a product among those of a record."""
    return "+".join([*layers, product.name])


def _runs_here(plan: StoredPlan | None, product: Product) -> bool:
    """Whether this machine has all that the plan asks for."""
    if plan is None:
        return True
    devices = {weights.weight.device.type for weights in product.site_weights}
    if not plan.buckets:
        way = DENSE_WAYS.get(plan.dense_way)
        return plan.dense_way == PLAIN or (way is not None and way.on_cpu and "cuda" not in devices)
    if (
        plan.dtype not in WEIGHT_DTYPES
        or any(layout.device != "cpu" for layout in plan.layouts)
        or "cuda" in devices
    ):
        return False
    here = {
        (kernel.base_name, kernel.packing, kernel.storage)
        for kernel in ops.kernels()
        if kernel.isa == ops.active_isa()
    }
    return all(
        (bucket.kernel, plan.layouts[bucket.packing].packing, plan.layouts[bucket.packing].storage) in here
        for bucket in ops.parse_plan(plan.buckets)
    )


def _plan(stored: StoredPlan, fmt: Sequence[CSR | BSR] | CSR | BSR | None, product: Product) -> Plan:
    """The stored plan with packings of a format, one for each layout or one for all."""
    if not stored.buckets:
        return _of_packings(stored, ())
    assert fmt is not None
    formats = fmt if isinstance(fmt, Sequence) else [fmt] * len(stored.layouts)
    groups = getattr(product.sites[0].module, "groups", 1)
    pairs = zip(formats, stored.layouts, strict=True)
    return _of_packings(stored, [tuple(pack_groups(one, [layout], groups)) for one, layout in pairs])


def _of_packings(stored: StoredPlan, packings: Sequence[tuple[Tensor, ...]]) -> Plan:
    """The stored plan with these packings, for each layout one or one per group; none if it stays dense."""
    times = (Times(stored.tokens, {}, {}, "remembered"),) if stored.tokens else ()
    buckets = ops.parse_plan(stored.buckets) if stored.buckets else ()
    return Plan("stored", times, (), tuple(packings), buckets, stored.dense_way, stored.dense_at)


def _format(weights: Weights, stored: StoredPlan) -> list[CSR | BSR] | None:
    """The weights as each layout of the plan wants them."""
    if not stored.buckets:
        return None
    rounded = weights.rounded(WEIGHT_DTYPES[stored.dtype])
    if isinstance(rounded, str):
        raise ValueError(f"weight: expected one that can be held in {stored.dtype}: {rounded}")
    scales = rounded.scales if rounded.weight.dtype == torch.int8 else None
    return [_blocked(rounded.weight, block, scales) for block in stored.blocks]


def _blocked(matrix: Tensor, block: tuple[int, int], scales: Tensor | None) -> CSR | BSR:
    if block == (1, 1):
        return CSR.from_dense(matrix, scales)
    return BSR.from_dense(matrix, block, scales)
