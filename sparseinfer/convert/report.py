"""The report of a conversion: what convert decided for each layer, and why."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import nn

from sparseinfer import ops
from sparseinfer._tables import as_text
from sparseinfer.modules import SparseConv1d, SparseConv2d, SparseLinear
from sparseinfer.modules.sparse_or_dense import BESIDE

_ATTRIBUTE = "_sparseinfer_report"
_WITHOUT_TERMINAL = (160, 24)


@dataclass(frozen=True)
class LayerReport:
    """The decision for one matrix.

    layer        name of the module; if it has several matrices, followed by ":" and the matrix's name
    shape        (n, k); () for a layer without weights
    sparsity     fraction of zeros; None if the weight was not examined
    pattern      how the zeros lie: "none", "unstructured", "blocks" (many empty 4x4) or "rows"
    decision     "sparse"; "prepacked": a dense weight, reordered once for oneDNN; "2:4": torch's compressed
                 weight for sparse tensor cores; "channels_last": a pooling; or "dense"
    kernels      (max_tokens or None for no limit, kernel) per bucket; () if dense. Where a layer also holds
                 its dense weight, for some buckets the dense implementation
    tokens       planned token counts, ascending; dense_us and sparse_us have one entry for each
    dense_us     microseconds of the best dense implementation
    sparse_us    microseconds of what the kernels take, or the best layout if dense was faster; () if none
                 was tried
    source       origin of the times: "measured", "remembered" (cached) or "predicted"; if they differ, the
                 least reliable one
    dense_nbytes bytes of the original weight and bias
    nbytes       bytes of everything the layer holds now
    units        what multiplies in each of `kernels` on this CPU: "FMA", "bf16 dot", "AMX bf16" ...
    dtype        that it multiplies in; "bfloat16 x float32": weights by activations. Several if it changes
                 with the number of tokens

    A layer that shares one matrix with others gets a share of the times and bytes, by rows.
    """

    layer: str
    shape: tuple[int, ...]
    sparsity: float | None
    decision: str
    reason: str
    pattern: str = ""
    kernels: tuple[tuple[int | None, str], ...] = ()
    tokens: tuple[int, ...] = ()
    dense_us: tuple[float, ...] = ()
    sparse_us: tuple[float, ...] = ()
    source: str = ""
    dense_nbytes: int = 0
    nbytes: int = 0
    dtype: str = ""
    units: tuple[str, ...] = ()

    def left_dense(self, reason: str, dtype: str) -> LayerReport:
        """The same report for a module that stays unchanged after all, with weights of this dtype."""
        unchanged = replace(self, decision="dense", reason=reason, nbytes=self.dense_nbytes, dtype=dtype)
        return replace(unchanged, kernels=(), units=())


@dataclass(frozen=True)
class Explanation:
    """The reports of all layers, in the order of the model. `str()` is a table."""

    rows: tuple[LayerReport, ...]

    def to_json(self) -> str:
        """A JSON object {"layers": [...], "dense_nbytes": int, "nbytes": int}; fields as in LayerReport."""
        rows = [_finite(asdict(row)) for row in self.rows]
        return json.dumps(
            {"layers": rows, "dense_nbytes": self.dense_nbytes, "nbytes": self.nbytes}, indent=2
        )

    @property
    def dense_nbytes(self) -> int:
        """Bytes of all original weights and biases."""
        return sum(row.dense_nbytes for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that the layers hold now."""
        return sum(row.nbytes for row in self.rows)

    def table(self) -> Any:
        """The same as a rich.table.Table."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        sparse = sum(row.decision == "sparse" for row in self.rows)
        size = f"{self.nbytes:,} bytes, {self.dense_nbytes:,} if dense"
        title = f"{sparse} of {len(self.rows)} layers sparse, {size}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for column in _COLUMNS:
            table.add_column(column.name, justify=column.justify, overflow="fold")
        for row in self.rows:
            table.add_row(*(escape(column.cell(row)) for column in _COLUMNS))
        return table

    def __str__(self) -> str:
        return as_text(self.table(), shutil.get_terminal_size(_WITHOUT_TERMINAL).columns)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity, which is what a prediction says of a candidate that it does not know."""
    for name in ("dense_us", "sparse_us"):
        row[name] = [us if math.isfinite(us) else None for us in row[name]]
    return row


def explain(model: nn.Module) -> Explanation:
    """What `convert` decided for each layer of a converted model, with the times and the reason.

    A model assembled from converted parts has no record: only its SparseLinear layers are listed, without
    times. TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    rows: tuple[LayerReport, ...] | None = getattr(model, _ATTRIBUTE, None)
    return Explanation(_inspected(model) if rows is None else rows)


def attach(model: nn.Module, rows: tuple[LayerReport, ...]) -> None:
    """Store the record for `explain` on the model; it is copied and pickled with the model."""
    setattr(model, _ATTRIBUTE, rows)


def detach(model: nn.Module) -> None:
    """Remove the record, those of parts too: a model may be wrapped after `convert`."""
    for module in model.modules():
        vars(module).pop(_ATTRIBUTE, None)


def _kernels_of(plan: str) -> tuple[tuple[int | None, str], ...]:
    """(max_tokens, kernel) per bucket of a plan."""
    return tuple((bucket.max_tokens, bucket.kernel) for bucket in ops.parse_plan(plan))


def units_of(kernels: Sequence[tuple[int | None, str]]) -> tuple[str, ...]:
    """The units of CPU kernels; () for those of a GPU."""
    known = {row.base_name for row in ops.kernels()}
    if not all(name in known or name in BESIDE for _, name in kernels):
        return ()
    return tuple(ops.UNITS[ops.kernel_info(name).unit] if name in known else "torch" for _, name in kernels)


def _inspected(model: nn.Module) -> tuple[LayerReport, ...]:
    return tuple(
        LayerReport(
            layer=fqn,
            shape=module.matrix_shape,
            sparsity=module.sparsity,
            decision="sparse",
            reason="found in the model",
            kernels=(kernels := _kernels_of(module.plan)),
            units=units_of(kernels),
            dense_nbytes=module.dense_nbytes,
            nbytes=module.nbytes,
        )
        for fqn, module in model.named_modules()
        if isinstance(module, (SparseLinear, SparseConv1d, SparseConv2d))
    )


def _kernels(row: LayerReport) -> str:
    return "\n".join(kernel if limit is None else f"{kernel} (m<={limit})" for limit, kernel in row.kernels)


def _lines(values: Sequence[float], pattern: str) -> str:
    return "\n".join(pattern.format(value) for value in values)


class _Column(NamedTuple):
    name: str
    justify: Literal["left", "right"]
    cell: Callable[[LayerReport], str]


_COLUMNS = (
    _Column("layer", "left", lambda row: row.layer or "(model)"),
    _Column("n x k", "right", lambda row: " x ".join(map(str, row.shape))),
    _Column("sparsity", "right", lambda row: "" if row.sparsity is None else f"{row.sparsity:.3f}"),
    _Column("decision", "left", lambda row: row.decision),
    _Column("dtype", "left", lambda row: row.dtype),
    _Column("kernel", "left", _kernels),
    _Column("unit", "left", lambda row: "\n".join(row.units)),
    _Column("m", "right", lambda row: _lines(row.tokens, "{}")),
    _Column("dense us", "right", lambda row: _lines(row.dense_us, "{:.1f}")),
    _Column("sparse us", "right", lambda row: _lines(row.sparse_us, "{:.1f}")),
    _Column("bytes", "right", lambda row: f"{row.nbytes:,}"),
    _Column("reason", "left", lambda row: row.reason),
)
