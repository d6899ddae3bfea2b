"""Record: all that `convert` decided of a model, as plain JSON, so that a file can hold it.

`reload.py` applies it to a model of the same class with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from sparseinfer import ops
from sparseinfer.convert.assembly.replacements import Build
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.options import SPEED, ConvertOptions
from sparseinfer.convert.plan import Plan
from sparseinfer.convert.report import LayerReport
from sparseinfer.convert.survey.survey import Survey
from sparseinfer.modules.sparse_or_dense import BESIDE
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN

_ATTRIBUTE = "_sparseinfer_record"
# Of an input: to measure, one is made, and a file may say anything.
_MOST_ELEMENTS = 2**30


@dataclass(frozen=True)
class Calls:
    """How the recorded run called a layer.

    shapes   of its first input
    inputs   equal for layers that got the same tensors; None: no run called it
    channels_last   whether its inputs were in that memory format
    """

    shapes: tuple[tuple[int, ...], ...] = ()
    inputs: int | None = None
    channels_last: bool = False


@dataclass(frozen=True)
class StoredPlan:
    """A Plan without its packings.

    dtype     of the packed weight
    layouts   one for each packing
    blocks    block size of each packing; (1, 1) where it has none
    buckets   text of `ops.format_plan`; "" if the product stays dense
    dense_at  numbers of the buckets that `dense_way` serves
    tokens    that a dense weight is laid out for; 0: any
    """

    dense_way: str = PLAIN
    dtype: str = ""
    layouts: tuple[Layout, ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()
    buckets: str = ""
    dense_at: tuple[int, ...] = ()
    tokens: int = 0

    @classmethod
    def of(cls, plan: Plan) -> StoredPlan:
        tokens = plan.times[-1].tokens if plan.times else 0
        if not plan.is_sparse:
            return cls(plan.dense_way, tokens=tokens)
        infos = [ops.describe(packings[0]) for packings in plan.packings]
        return cls(
            plan.dense_way,
            dtype=infos[0].dtype,
            layouts=tuple(map(Layout.of, infos)),
            blocks=tuple((info.block_size[0], info.block_size[1]) for info in infos),
            buckets=ops.format_plan(plan.buckets),
            dense_at=plan.dense_at,
            tokens=tokens if plan.dense_at else 0,
        )


@dataclass(frozen=True)
class StoredDecision:
    """The plan of one product, and of the layer by itself where a batch norm is folded into the product."""

    layers: tuple[str, ...]
    matrix: str
    plan: StoredPlan
    plain: StoredPlan | None = None

    @property
    def has_integers(self) -> bool:
        return any(plan is not None and plan.dtype == "i8" for plan in (self.plan, self.plain))


@dataclass(frozen=True)
class Record:
    """options    of the attempt that was accepted
    layers     the layers that were planned, in order, and how they were called
    decisions  for each product
    left_dense the layers that stay as they are, and why
    pools      max poolings that run in another layout: microseconds before and after
    rows       what `explain` says
    """

    options: ConvertOptions
    layers: Mapping[str, Calls]
    decisions: tuple[StoredDecision, ...]
    left_dense: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rows: tuple[LayerReport, ...] = ()


def record_of(
    survey: Survey,
    decisions: Sequence[Decision],
    built: Build,
    options: ConvertOptions,
    rows: tuple[LayerReport, ...],
) -> Record:
    """The record of a conversion."""
    recording = survey.recording
    numbers: dict[object, int] = {}
    layers = {}
    for site in survey.sites:
        marks = recording.shared.get(site.module)
        layers[site.fqn] = Calls(
            recording.shapes.get(site.module, ()),
            numbers.setdefault(marks, len(numbers)) if marks else None,
            site.module in recording.channels_last,
        )
    stored = tuple(
        StoredDecision(
            tuple(site.fqn for site in decision.product.sites),
            decision.product.name,
            StoredPlan.of(decision.plan),
            None if decision.plain is None else StoredPlan.of(decision.plain),
        )
        for decision in decisions
    )
    return Record(
        options,
        layers,
        stored,
        {
            site.fqn: built.left_dense.get(site, "it stayed dense")
            for site in survey.sites
            if site in built.left_dense or site.module not in built.replacements
        },
        {fqn: (pool.dense_us, pool.us) for fqn, pool in built.pools.items()},
        rows,
    )


def attach_record(model: nn.Module, record: Record) -> None:
    """Store the record on the model, after those of earlier conversions; it is copied with the model."""
    setattr(model, _ATTRIBUTE, (*recorded(model), record))


def detach_record(model: nn.Module) -> None:
    """Remove the records, those of parts too: a model may be wrapped after `convert`."""
    for module in model.modules():
        vars(module).pop(_ATTRIBUTE, None)


def recorded(model: nn.Module) -> tuple[Record, ...]:
    """The records of the conversions that made this model, in order; () if `convert` did not return it."""
    records: tuple[Record, ...] = vars(model).get(_ATTRIBUTE, ())
    return records


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain JSON."""
    content = asdict(replace(record, rows=()))
    # The time to measure for belongs to a machine; no limit of memory has a name, which JSON can say.
    options = {name: _plain(value) for name, value in vars(record.options).items() if name != "budget_s"}
    options["memory"] = "speed" if record.options.memory_limit == SPEED else options["memory"]
    rows = [{name: _plain(value) for name, value in asdict(row).items()} for row in record.rows]
    content = {name: _plain(value) for name, value in content.items()}
    return {**content, "options": options, "rows": rows}


def from_json(content: Any) -> Record:
    """The inverse of `to_json`. ValueError: it is none."""
    try:
        parts = dict(content)
        options = {
            option.name: parts["options"][option.name]
            for option in fields(ConvertOptions)
            if option.name in parts["options"]
        }
        for name in ("weights", "activations"):
            options[name] = (
                None
                if options.get(name) is None
                else getattr(torch, str(options[name]).removeprefix("torch."))
            )
        return Record(
            ConvertOptions(**options),
            {str(fqn): _calls(calls) for fqn, calls in parts["layers"].items()},
            tuple(map(_decision, parts["decisions"])),
            {str(fqn): str(reason) for fqn, reason in parts["left_dense"].items()},
            {str(fqn): (float(us[0]), float(us[1])) for fqn, us in parts["pools"].items()},
            tuple(map(_row, parts["rows"])),
        )
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        got = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"conversion: expected a record of convert, got {got}") from None


def _plain(value: Any) -> Any:
    """Lists for tuples, names for dtypes, None for what JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, torch.dtype) else value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not all(
        type(size) is int and 0 <= size < 2**31 for size in value
    ):
        raise ValueError(f"expected sizes, got {str(value)[:80]}")
    return tuple(value)


def _calls(content: Any) -> Calls:
    inputs = content["inputs"]
    if inputs is not None and type(inputs) is not int:
        raise ValueError(f"expected a number for inputs, got {str(inputs)[:80]}")
    shapes = tuple(_sizes(shape) for shape in content["shapes"])
    if not all(0 < math.prod(shape) <= _MOST_ELEMENTS for shape in shapes):
        raise ValueError(f"expected shapes of inputs, got {str(shapes)[:80]}")
    return Calls(shapes, inputs, bool(content["channels_last"]))


def _decision(content: Any) -> StoredDecision:
    plain = content["plain"]
    layers = tuple(map(str, content["layers"]))
    if not layers:
        raise ValueError("expected layers of a product, got none")
    return StoredDecision(
        layers, str(content["matrix"]), _plan(content["plan"]), None if plain is None else _plan(plain)
    )


def _plan(content: Any) -> StoredPlan:
    layouts = tuple(map(_layout, content["layouts"]))
    blocks = tuple(_sizes(block) for block in content["blocks"])
    buckets = str(content["buckets"])
    if len(blocks) != len(layouts) or any(len(block) != 2 for block in blocks):
        raise ValueError("expected a block size for each layout, got others")
    if bool(buckets) != bool(layouts):
        raise ValueError("expected layouts and buckets or neither, got one")
    if buckets and not all(bucket.packing < len(layouts) for bucket in ops.parse_plan(buckets)):
        raise ValueError("expected buckets of these layouts, got others")
    way, dtype = str(content["dense_way"]), str(content["dtype"])
    # Files of before there was such a plan have none.
    dense_at = _sizes(content.get("dense_at", ()))
    if dense_at and (not buckets or max(dense_at) >= len(ops.parse_plan(buckets)) or way not in BESIDE):
        raise ValueError("expected dense buckets of the plan and how they are computed, got others")
    (tokens,) = _sizes([content["tokens"]])
    pairs = tuple((r, c) for r, c in blocks)
    return StoredPlan(way, dtype, layouts, pairs, buckets, dense_at, tokens)


def _layout(content: Any) -> Layout:
    (panel,) = _sizes([content["panel"]])
    return Layout(str(content["packing"]), str(content["storage"]), panel, str(content["device"]))


def _row(content: Any) -> LayerReport:
    row = LayerReport(**content)
    texts = (row.layer, row.decision, row.reason, row.pattern, row.source)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("expected texts in the report of a layer, got others")
    dense_us, sparse_us = (
        tuple(math.inf if us is None else float(us) for us in times)
        for times in (row.dense_us, row.sparse_us)
    )
    return replace(
        row,
        shape=_sizes(row.shape),
        sparsity=None if row.sparsity is None else float(row.sparsity),
        kernels=tuple((None if limit is None else int(limit), str(kernel)) for limit, kernel in row.kernels),
        tokens=_sizes(row.tokens),
        dense_us=dense_us,
        sparse_us=sparse_us,
        units=tuple(map(str, row.units)),
        dense_nbytes=int(row.dense_nbytes),
        nbytes=int(row.nbytes),
    )
