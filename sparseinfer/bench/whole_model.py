"""Benchmarks whole models: dense against pruned and converted, in turns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparseinfer._timing import num_threads
from sparseinfer.bench import models
from sparseinfer.bench.compare import model_nbytes
from sparseinfer.bench.decode import CompiledDecode, LogitErrors, logit_errors
from sparseinfer.bench.peers.graphs import model_graph
from sparseinfer.bench.peers.process import Opened
from sparseinfer.bench.peers.registry import Peers
from sparseinfer.bench.problem import NumericsError
from sparseinfer.bench.turns import fastest, time_models
from sparseinfer.bench.whole_settings import DTYPES, MODEL_BF16, ModelSettings
from sparseinfer.convert import LayerReport, convert, explain
from sparseinfer.prune import Block, Magnitude, prune_

# ‖result − that of the pruned model‖ / ‖that‖ of an engine, by what it computes in. Chosen, not measured: as
# accept.py has them for the converted model.
_TOLERANCES = {"f32": 1e-3, "bf16": 0.05}


@dataclass(frozen=True)
class Measurement:
    """One model at one batch, sparsity and dtype. Times are minima (medians) over the run.

    dense          the fastest dense model, by its memory format and, if not float32, its dtype; speed_up is
                   over it
    max_diff       ‖result − that of the pruned model run densely‖ / ‖that‖; the share of tokens that differ
    tokens_per_s   of the sparse model, if it generates tokens
    pattern        of the zeros: "unstructured" or the size of blocks
    dense_by_name  milliseconds of every dense model
    sparse_spread  as `Timing` has it
    similarity     mean cosine between the pruned model's result and the dense one's, by tokens or images; of
                   generated tokens the share that is equal
    peers_ms       of the pruned model in other engines
    per_layer      for each layer its name, decision, and microseconds of the best dense product and of what
                   was chosen, as convert timed them for the most tokens
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
    sparse_spread: float = 0.0
    similarity: float = 1.0
    peers_ms: Mapping[str, float] = field(default_factory=dict)
    per_layer: Sequence[tuple[str, str, float, float]] = ()
    compiled: bool = False
    logit_errors: LogitErrors | None = None


def run(
    settings: ModelSettings,
    on_step: Callable[[str], None] = lambda text: None,
    load: Callable[[str], models.Model] = lambda name: models.MODELS[name],
    peers: Peers | None = None,
) -> Iterator[Measurement]:
    """Measures all combinations; `on_step` is called before each step, `load` finds a model by its name.

    peers   those of the settings, if they are running already

    RuntimeError: a package is missing. NumericsError, before it is timed: an engine's result is wrong.
    """
    with nullcontext(peers) if peers else Peers(settings.peers) as running:
        for name in settings.models:
            for threads in settings.threads:
                with num_threads(threads), torch.inference_mode():
                    yield from _Run(name, load(name), threads, settings, running, on_step).measurements()


class _Run:
    """One model at one number of threads."""

    def __init__(
        self,
        name: str,
        model: models.Model,
        threads: int,
        settings: ModelSettings,
        peers: Peers,
        on_step: Callable[[str], None],
    ) -> None:
        self._name, self._threads, self._settings, self._on_step = name, threads, settings, on_step
        self._model, self._peers = model, peers

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
                original = self._run(dense, inputs)
                for dtype in settings.dtypes:
                    model = copy.deepcopy(pruned).bfloat16() if dtype == MODEL_BF16 else pruned
                    # Where nothing may be rounded, a rounded dense model counts only if it was asked for.
                    rounds = bool(settings.dense) or dtype in allows
                    fair = {name: rival for name, rival in rivals.items() if rounds or "bf16" not in name}
                    yield self._measured(fair, model, inputs, batch, sparsity, dtype, original)

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
        original: Tensor,
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
        with ExitStack() as stack:
            engines = self._engines(pruned, inputs, expected, about, stack, rounds="bf16" in dtype)
            self._on_step(f"timing, {about}")
            times = time_models(candidates, run, inputs, budget_s=self._settings.budget_s, others=engines)
        best = fastest(times, rivals)
        dense_time, sparse_time = times[best], times["sparse"]
        layers = explain(fast).rows
        return Measurement(
            model=Path(self._name).name,  # of a folder, too
            batch=batch,
            sparsity=sparsity or _sparsity(layers),
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
            sparse_spread=sparse_time.spread,
            similarity=_similarity(expected, original),
            peers_ms={name: times[name].min_us / 1e3 for name in engines},
            per_layer=[_layer(row) for row in layers if row.dense_us],
            compiled=self._settings.compiled,
            logit_errors=errors,
        )

    def _engines(
        self,
        pruned: nn.Module,
        inputs: Any,
        expected: Tensor,
        about: str,
        stack: ExitStack,
        *,
        rounds: bool,
    ) -> dict[str, Opened]:
        """The pruned model in each engine, until the stack closes; also in bfloat16 if OpenVINO `rounds`."""
        opened: dict[str, Opened] = {}
        workers = self._peers.workers
        if not workers:
            return opened
        if self._model.tokens:
            raise ValueError(f"peers: expected a model that is one call, got {self._name}, which generates")
        self._on_step(f"exporting, {about}")
        wide = pruned if next(pruned.parameters()).dtype == torch.float32 else copy.deepcopy(pruned).float()
        path = workers[0].folder / "model.onnx"
        graph, tensors = model_graph(wide, self._model.run, _as(wide, inputs), path)
        for worker in workers:
            for precision in ("f32", *(["bf16"] if rounds and worker.name == "openvino" else [])):
                name = f"{worker.name} {precision}"
                self._on_step(f"compiling in {name}, {about}")
                one = Opened(worker, graph, tensors, self._threads, precision)
                stack.callback(one.close)
                difference = _difference(one.result, expected)
                if not difference <= _TOLERANCES[precision]:
                    raise NumericsError(
                        f"{name}: expected a result within {_TOLERANCES[precision]:g} of the pruned model's, "
                        f"got {difference:.2g} ({about})"
                    )
                opened[name] = one
        return opened

    def _run(self, model: nn.Module, inputs: Any) -> Tensor:
        return self._model.run(model, _as(model, inputs))


def _decoded(decode: CompiledDecode, ids: Tensor) -> Tensor:
    return decode(ids)


def _as(model: nn.Module, inputs: Any) -> Any:
    """Floating inputs in the model's dtype."""
    dtype = next(model.parameters()).dtype
    return tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)


def to_json(machine: Mapping[str, object], measured: Sequence[Measurement]) -> dict[str, object]:
    """All measurements and the machine, ready for JSON."""
    return {"machine": machine, "rows": [asdict(one) for one in measured]}


def table(measured: Sequence[Measurement]) -> Table:
    """A row for each measurement."""
    table = Table()
    names = ("model", "batch", "sparsity", "dtype", "dense ms", "sparse ms", "speed-up", "max diff")
    for name in (*names, "cosine", "bytes", "sparse layers", "tokens/s"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for one in measured:
        table.add_row(
            one.model,
            str(one.batch),
            f"{one.sparsity:g}",
            one.dtype,
            f"{one.dense_ms:.1f}" + ("" if one.dense == "default" else f" {one.dense}"),
            f"{one.sparse_ms:.1f} ±{one.sparse_spread:.0%}",
            f"{one.speed_up:.2f}",
            f"{one.max_diff:.1e}",
            f"{one.similarity:.3f}",
            f"{one.nbytes / one.dense_nbytes:.2f}×",
            f"{one.sparse_layers}/{one.layers}",
            f"{one.tokens_per_s:.1f}" if one.tokens_per_s else "",
        )
    return table


def peer_table(measured: Sequence[Measurement]) -> Table | None:
    """Milliseconds of the pruned models in other engines, and dense over them; None without engines."""
    if not any(one.peers_ms for one in measured):
        return None
    table = Table()
    for name in ("model", "batch", "sparsity", "dtype", "engine", "ms", "speed-up"):
        table.add_column(name, justify="left" if name in ("model", "engine") else "right")
    for one in measured:
        for name, ms in {"torch, dense": one.dense_ms, "sparseinfer": one.sparse_ms, **one.peers_ms}.items():
            about = (one.model, str(one.batch), f"{one.sparsity:g}", one.dtype)
            table.add_row(*about, name, f"{ms:.1f}", f"{one.dense_ms / ms:.2f}")
    return table


def _sparsity(layers: Sequence[LayerReport]) -> float:
    """The zeros of all weights that convert looked at, of a model that was pruned before."""
    known = [(math.prod(row.shape), row.sparsity) for row in layers if row.sparsity is not None]
    return round(sum(size * zeros for size, zeros in known) / max(1, sum(size for size, _ in known)), 4)


def _layer(row: LayerReport) -> tuple[str, str, float, float]:
    """Of a layer that was timed; see `Measurement.per_layer`."""
    chosen = row.dense_us if row.decision == "dense" else row.sparse_us or row.dense_us
    return row.layer, row.decision, row.dense_us[-1], chosen[-1]


def _similarity(got: Tensor, dense: Tensor) -> float:
    if not got.is_floating_point():
        return 1.0 - _difference(got, dense)
    a, b = (t.double().reshape(-1, t.shape[-1]) for t in (got, dense))
    return float(F.cosine_similarity(a, b).mean())


def _difference(got: Tensor, expected: Tensor) -> float:
    if not got.is_floating_point():
        return float((got != expected).double().mean()) if got.shape == expected.shape else 1.0
    return float((got.double() - expected.double()).norm() / expected.double().norm())
