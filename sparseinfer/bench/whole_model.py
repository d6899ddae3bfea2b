"""Benchmarks whole models: dense against pruned and converted, in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseinfer._arguments import argument, positive
from sparseinfer._timing import num_threads
from sparseinfer.bench import models
from sparseinfer.bench.compare import model_nbytes
from sparseinfer.bench.settings import Settings
from sparseinfer.bench.turns import fastest, time_models
from sparseinfer.convert import convert, explain
from sparseinfer.prune import Magnitude, prune_

# The arguments of `convert` by the name of what they round: "bf16w" the weights alone. "bf16" is what may be
# rounded, and the dense model is timed in bfloat16, too.
DTYPES: Mapping[str, Mapping[str, Any]] = {
    "f32": {},
    "bf16w": {"weights": torch.bfloat16},
    "bf16": {"precision": "bf16"},
}


@dataclass(frozen=True)
class ModelSettings:
    """Models of `models.MODELS` by name; threads, sparsities, batches and dtypes to combine.

    `budget_s` is for each combination. Fields without a help are those of `settings.Settings`, with the same
    defaults. ValueError: an unknown model or dtype.
    """

    models: Sequence[str] = field(
        default=(),
        metadata=argument(
            f"{', '.join(models.MODELS)}: whole models instead of a layer", flag="model", several=True
        ),
    )
    batches: Sequence[int] = field(
        default=(1,),
        metadata=argument("inputs of one call of --model", flag="batch", read=positive, several=True),
    )
    sparsities: Sequence[float] = Settings.sparsities
    dtypes: Sequence[str] = Settings.dtypes
    threads: Sequence[int] = Settings.threads
    budget_s: float = Settings.budget_s

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in models.MODELS:
                raise ValueError(f"model: expected one of {', '.join(models.MODELS)}, got {name!r}")
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"dtypes: expected some of {', '.join(DTYPES)}, got {dtype!r}")


@dataclass(frozen=True)
class Measurement:
    """One model at one batch, sparsity and dtype. Times are minima (medians) over the run.

    dense          memory format of the fastest dense model, and "bf16" if it is in bfloat16, which is allowed
                   where the sparse one may round; speed_up is over it
    max_diff       ‖result − that of the pruned model run densely‖ / ‖that‖; the share of tokens that differ
    tokens_per_s   of the sparse model, if it generates tokens
    """

    model: str
    batch: int
    sparsity: float
    dtype: str
    threads: int
    dense: str
    dense_ms: float
    sparse_ms: float
    dense_median_ms: float
    sparse_median_ms: float
    speed_up: float
    max_diff: float
    dense_nbytes: int
    nbytes: int
    layers: int
    sparse_layers: int
    tokens_per_s: float = 0.0


def run(settings: ModelSettings, on_step: Callable[[str], None] = lambda text: None) -> Iterator[Measurement]:
    """Measures all combinations; `on_step` is called before each. RuntimeError: a package is missing."""
    for name in settings.models:
        for threads in settings.threads:
            with num_threads(threads), torch.inference_mode():
                yield from _Run(name, threads, settings, on_step).measurements()


class _Run:
    """One model at one number of threads."""

    def __init__(
        self, name: str, threads: int, settings: ModelSettings, on_step: Callable[[str], None]
    ) -> None:
        self._name, self._threads, self._settings, self._on_step = name, threads, settings, on_step
        self._model = models.MODELS[name]

    def measurements(self) -> Iterator[Measurement]:
        self._on_step("building")
        dense = self._model.build()
        by_format = {"default": dense}
        if "channels_last" in self._model.memory_formats:
            other: Any = copy.deepcopy(dense)
            by_format["channels_last"] = other.to(memory_format=torch.channels_last)
        shorter = {}
        if "bf16" in self._settings.dtypes:
            shorter = {f"{name} bf16": copy.deepcopy(by_format[name]).bfloat16() for name in by_format}
        for sparsity in self._settings.sparsities:
            self._on_step(f"pruning to {sparsity:g}")
            pruned = copy.deepcopy(dense)
            if sparsity:
                prune_(pruned, Magnitude(sparsity), ignore=self._model.ignore, keep_masks=False)
            for batch in self._settings.batches:
                inputs = self._model.inputs(batch)
                expected = self._model.run(pruned, inputs)
                for dtype in self._settings.dtypes:
                    rivals = by_format | (shorter if dtype == "bf16" else {})
                    yield self._measured(rivals, pruned, inputs, expected, batch, sparsity, dtype)

    def _measured(
        self,
        rivals: Mapping[str, nn.Module],
        pruned: nn.Module,
        inputs: Any,
        expected: Tensor,
        batch: int,
        sparsity: float,
        dtype: str,
    ) -> Measurement:
        about = f"sparsity {sparsity:g}, batch {batch}, {dtype}"
        self._on_step(f"converting, {about}")
        arguments = {**self._model.options, **DTYPES[dtype]}
        fast = convert(pruned, example_inputs=self._model.example(inputs), **arguments)
        max_diff = _difference(self._model.run(fast, inputs), expected)
        self._on_step(f"timing, {about}")
        candidates = {**rivals, "sparse": fast}
        times = time_models(candidates, self._run, inputs, budget_s=self._settings.budget_s)
        best = fastest(times, rivals)
        dense_time, sparse_time = times[best], times["sparse"]
        layers = explain(fast).rows
        return Measurement(
            model=self._name,
            batch=batch,
            sparsity=sparsity,
            dtype=dtype,
            threads=self._threads,
            dense=best,
            dense_ms=dense_time.min_us / 1e3,
            sparse_ms=sparse_time.min_us / 1e3,
            dense_median_ms=dense_time.median_us / 1e3,
            sparse_median_ms=sparse_time.median_us / 1e3,
            speed_up=dense_time.min_us / sparse_time.min_us,
            max_diff=max_diff,
            dense_nbytes=model_nbytes(pruned),
            nbytes=model_nbytes(fast),
            layers=len(layers),
            sparse_layers=sum(layer.decision == "sparse" for layer in layers),
            tokens_per_s=1e6 * self._model.tokens * batch / sparse_time.min_us,
        )

    def _run(self, model: nn.Module, inputs: Any) -> Tensor:
        """A run of the model, which takes floating-point inputs in its own dtype."""
        dtype = next(model.parameters()).dtype
        return self._model.run(model, tree_map(lambda value: _in(dtype, value), inputs))


def _in(dtype: torch.dtype, value: Any) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def to_json(machine: Mapping[str, object], measured: Sequence[Measurement]) -> dict[str, object]:
    return {"machine": machine, "rows": [asdict(one) for one in measured]}


def table(measured: Sequence[Measurement]) -> Table:
    table = Table()
    names = ("model", "batch", "sparsity", "dtype", "dense ms", "sparse ms", "speed-up", "max diff", "bytes")
    for name in (*names, "dense bytes", "sparse layers", "tokens/s"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for one in measured:
        table.add_row(
            one.model,
            str(one.batch),
            f"{one.sparsity:g}",
            one.dtype,
            f"{one.dense_ms:.1f}",
            f"{one.sparse_ms:.1f}",
            f"{one.speed_up:.2f}",
            f"{one.max_diff:.1e}",
            f"{one.nbytes:,}",
            f"{one.dense_nbytes:,}",
            f"{one.sparse_layers}/{one.layers}",
            f"{one.tokens_per_s:.1f}" if one.tokens_per_s else "",
        )
    return table


def _difference(got: Tensor, expected: Tensor) -> float:
    if not got.is_floating_point():
        return float((got != expected).double().mean()) if got.shape == expected.shape else 1.0
    return float((got.double() - expected.double()).norm() / expected.double().norm())
