"""Benchmarks whole models: dense against pruned and converted, in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparseinfer._arguments import argument, positive
from sparseinfer._timing import num_threads
from sparseinfer.bench import models
from sparseinfer.bench.compare import model_nbytes
from sparseinfer.bench.decode import CompiledDecode, LogitErrors, logit_errors
from sparseinfer.bench.settings import Settings
from sparseinfer.bench.turns import fastest, time_models
from sparseinfer.convert import convert, explain
from sparseinfer.prune import Block, Magnitude, prune_

# The whole model in bfloat16, which is then also what the dense one is.
MODEL_BF16 = "bf16-model"

# The arguments of `convert` by the name of what they round: "bf16w" the weights alone. "bf16" and "int8" say
# what may be rounded, and the dense model is timed in bfloat16, too.
DTYPES: Mapping[str, Mapping[str, Any]] = {
    "f32": {},
    "bf16w": {"weights": torch.bfloat16},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8"},
    MODEL_BF16: {},
}

# What a dense model may be, beside the original in float32: each is tried, the fastest counts.
DENSE = ("f32", "bf16", "f32-prepacked", "bf16-prepacked")


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
    dense: Sequence[str] = field(
        default=(),
        metadata=argument(
            f"dense models to compare --model with, of {', '.join(DENSE)}; the fastest counts; default: f32, "
            "and bf16 where --dtype bf16 allows it",
            several=True,
        ),
    )
    compiled: bool = field(
        default=False,
        metadata=argument(
            "decode by graphs of torch.compile with a cache of fixed size; dense models that are prepacked "
            "are compiled with their weights as constants"
        ),
    )
    block: tuple[int, int] | None = Settings.block
    threads: Sequence[int] = Settings.threads
    budget_s: float = Settings.budget_s

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in models.MODELS:
                raise ValueError(f"model: expected one of {', '.join(models.MODELS)}, got {name!r}")
            if self.compiled and not models.MODELS[name].tokens:
                raise ValueError(f"compiled: expected a model that generates tokens, got {name}")
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"dtypes: expected some of {', '.join(DTYPES)}, got {dtype!r}")
        for dense in self.dense:
            if dense not in DENSE:
                raise ValueError(f"dense: expected some of {', '.join(DENSE)}, got {dense!r}")


@dataclass(frozen=True)
class Measurement:
    """One model at one batch, sparsity and dtype. Times are minima (medians) over the run.

    dense          the fastest dense model, by its memory format and, if not float32, its dtype; speed_up is
                   over it
    max_diff       ‖result − that of the pruned model run densely‖ / ‖that‖; the share of tokens that differ
    tokens_per_s   of the sparse model, if it generates tokens
    pattern        of the zeros: "unstructured" or the size of blocks
    dense_by_name  milliseconds of every dense model
    compiled       all models decode by compiled steps; then also
    logit_errors   of the sparse and of the dense pruned model, as in `decode.LogitErrors`
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
    pattern: str = "unstructured"
    dense_by_name: Mapping[str, float] = field(default_factory=dict)
    compiled: bool = False
    logit_errors: LogitErrors | None = None


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
        settings = self._settings
        self._on_step("building")
        dense = self._model.build()
        allows = {dtype for dtype in settings.dtypes if dtype in ("bf16", "int8", MODEL_BF16)}
        names = settings.dense or ("f32", *(["bf16"] if allows else []))
        rivals = self._rivals(dense, names)
        for sparsity in settings.sparsities:
            self._on_step(f"pruning to {sparsity:g}")
            pruned = copy.deepcopy(dense)
            if sparsity:
                block = settings.block
                method = Magnitude(sparsity, pattern=Block(*block)) if block else Magnitude(sparsity)
                prune_(pruned, method, ignore=self._model.ignore, keep_masks=False)
            for batch in settings.batches:
                inputs = self._model.inputs(batch)
                for dtype in settings.dtypes:
                    model = copy.deepcopy(pruned).bfloat16() if dtype == MODEL_BF16 else pruned
                    # Where nothing may be rounded, a rounded dense model counts only if it was asked for.
                    rounds = bool(settings.dense) or dtype in allows
                    fair = {name: rival for name, rival in rivals.items() if rounds or "bf16" not in name}
                    yield self._measured(fair, model, inputs, batch, sparsity, dtype)

    def _rivals(self, dense: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
        """The dense models; those with "bf16" in their names have this dtype."""
        by_format = {"default": dense}
        if "channels_last" in self._model.memory_formats:
            other: Any = copy.deepcopy(dense)
            by_format["channels_last"] = other.to(memory_format=torch.channels_last)
        found: dict[str, nn.Module] = dict(by_format) if "f32" in names else {}
        if "f32-prepacked" in names:
            found["f32 prepacked"] = self._prepacked(dense)
        if "bf16" in names or "bf16-prepacked" in names:
            half = {f"{name} bf16": copy.deepcopy(model).bfloat16() for name, model in by_format.items()}
            found |= half if "bf16" in names else {}
            if "bf16-prepacked" in names:
                found["bf16 prepacked"] = self._prepacked(half["default bf16"])
        return found

    def _prepacked(self, model: nn.Module) -> nn.Module:
        """Nothing is sparse, so that `convert` only prepacks what is faster so."""
        inputs = self._model.inputs(self._settings.batches[0])
        return convert(model, example_inputs=_as(model, self._model.example(inputs)))

    def _measured(
        self,
        rivals: Mapping[str, nn.Module],
        pruned: nn.Module,
        inputs: Any,
        batch: int,
        sparsity: float,
        dtype: str,
    ) -> Measurement:
        about = f"sparsity {sparsity:g}, batch {batch}, {dtype}"
        self._on_step(f"converting, {about}")
        arguments = {**self._model.options, **DTYPES[dtype]}
        expected = self._run(pruned, inputs)
        fast = convert(pruned, example_inputs=_as(pruned, self._model.example(inputs)), **arguments)
        run: Callable[[Any, Any], Tensor] = self._run
        candidates: dict[str, Any] = {**rivals, "sparse": fast}
        errors = None
        if self._settings.compiled:
            self._on_step(f"compiling, {about}")
            torch._dynamo.reset()
            run = _decoded
            candidates = {name: CompiledDecode(each, self._model.tokens) for name, each in candidates.items()}
            for name in rivals:
                run(candidates[name], inputs)
            errors = logit_errors(candidates["sparse"], pruned, inputs, expected)
        max_diff = _difference(run(candidates["sparse"], inputs), expected)
        self._on_step(f"timing, {about}")
        times = time_models(candidates, run, inputs, budget_s=self._settings.budget_s)
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
            pattern="{}x{}".format(*self._settings.block) if self._settings.block else "unstructured",
            dense_by_name={name: times[name].min_us / 1e3 for name in rivals},
            compiled=self._settings.compiled,
            logit_errors=errors,
        )

    def _run(self, model: nn.Module, inputs: Any) -> Tensor:
        return self._model.run(model, _as(model, inputs))


def _decoded(decode: CompiledDecode, ids: Tensor) -> Tensor:
    return decode(ids)


def _as(model: nn.Module, inputs: Any) -> Any:
    """Floating inputs in the model's dtype."""
    dtype = next(model.parameters()).dtype
    return tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)


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
            f"{one.dense_ms:.1f}" + ("" if one.dense == "default" else f" {one.dense}"),
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
