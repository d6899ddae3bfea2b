"""`benchmark`: two models on the same inputs, side by side: results, latency, memory."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparseinfer._machine import describe_machine
from sparseinfer._running import call
from sparseinfer._tables import as_text
from sparseinfer.bench.turns import LEAST_RUNS
from sparseinfer.convert.survey.recording import tensors_of
from sparseinfer.ops import active_isa

if TYPE_CHECKING:
    from rich.table import Table

# Of Linux: writing "5" to the second sets the peak in the first, VmHWM, back to the memory in use (proc(5)).
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

# Columns of a comparison as text: more than its table needs.
_TEXT_WIDTH = 100


@dataclass(frozen=True)
class Side:
    """One model. Latencies in milliseconds, of single runs; bytes of parameters and buffers, each once.

    peak_rss_bytes: of the process, with both models in memory, while this one ran; 0 where it is not known.
    """

    min_ms: float
    p50_ms: float
    p99_ms: float
    nbytes: int
    peak_rss_bytes: int


@dataclass(frozen=True)
class Comparison:
    """`benchmark`'s result. `str()` is a table.

    max_abs_diff   largest |fast − dense| over all tensors of the results; NaN if one is not a number
    max_rel_diff   largest ‖fast − dense‖ / ‖dense‖ of any tensor of the results
    speed_up       median latency of dense over that of fast
    """

    dense: Side
    fast: Side
    runs: int
    threads: int
    max_abs_diff: float
    max_rel_diff: float

    @property
    def speed_up(self) -> float:
        """Median latency of dense over that of fast."""
        return self.dense.p50_ms / self.fast.p50_ms

    def to_json(self) -> str:
        """A JSON object: the fields, `speed_up` and the machine."""
        figures = {**asdict(self), "speed_up": self.speed_up, "machine": describe_machine(active_isa())}
        return json.dumps(figures, indent=2)

    def table(self) -> Table:
        """The comparison as a rich.table.Table."""
        from rich.table import Table

        title = f"{self.runs} runs each, {self.threads} thread(s), {self.speed_up:.2f}x faster"
        table = Table(title=title, title_justify="left")
        for name in ("", "p50 ms", "p99 ms", "min ms", "model bytes", "peak RSS"):
            table.add_column(name, justify="right")
        for name, side in (("dense", self.dense), ("fast", self.fast)):
            times = (f"{ms:.2f}" for ms in (side.p50_ms, side.p99_ms, side.min_ms))
            table.add_row(name, *times, f"{side.nbytes:,}", f"{side.peak_rss_bytes:,}")
        table.caption = f"results differ by {self.max_abs_diff:.2g} at most, {self.max_rel_diff:.2g} relative"
        return table

    def __str__(self) -> str:
        return as_text(self.table(), _TEXT_WIDTH)


def benchmark(dense: nn.Module, fast: nn.Module, inputs: Any, *, budget_s: float = 10.0) -> Comparison:
    """Run both models on the same inputs, in turns, and compare them.

    inputs     as `example_inputs` of `convert`: a tuple of arguments, a mapping of keywords, or the only one
    budget_s   seconds to time for; at least five runs each

    Both run in their present mode, without gradients. ValueError: the results differ in the number or shapes
    of their tensors.
    """
    with torch.inference_mode():
        expected, got = tensors_of(call(dense, inputs)), tensors_of(call(fast, inputs))
        shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in got]
        if shapes[0] != shapes[1] or not expected:
            raise ValueError(f"fast: expected results of shapes {shapes[0]}, got {shapes[1]}")
        peaks = []
        for model in (dense, fast):
            with _peak_rss() as peak:
                call(model, inputs)
            peaks.append(peak)
        times: tuple[list[float], list[float]] = ([], [])
        end = time.perf_counter() + budget_s
        while len(times[0]) < LEAST_RUNS or time.perf_counter() < end:
            for model, model_ms in zip((dense, fast), times, strict=True):
                start = time.perf_counter_ns()
                call(model, inputs)
                model_ms.append((time.perf_counter_ns() - start) / 1e6)
    pairs = [(a.double(), b.double()) for a, b in zip(expected, got, strict=True)]
    sides = (
        Side(
            min(model_ms),
            statistics.median(model_ms),
            statistics.quantiles(model_ms, n=100)[98],
            model_nbytes(model),
            peak.get("bytes", 0),
        )
        for model, model_ms, peak in zip((dense, fast), times, peaks, strict=True)
    )
    return Comparison(
        next(sides),
        next(sides),
        runs=len(times[0]),
        threads=torch.get_num_threads(),
        max_abs_diff=_largest([float((b - a).abs().max()) if a.numel() else 0.0 for a, b in pairs]),
        max_rel_diff=_largest([_relative(a, b) for a, b in pairs]),
    )


def model_nbytes(model: nn.Module) -> int:
    """Bytes of all parameters, buffers and prepacked weights; shared memory counts once."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    prepacked = sum(getattr(module, "hidden_nbytes", 0) for module in model.modules())
    return sum(tensors.values()) + prepacked


def _relative(expected: Tensor, got: Tensor) -> float:
    norm = float(expected.norm())
    return float((got - expected).norm()) / norm if norm else float(got.norm())


def _largest(values: list[float]) -> float:
    return float("nan") if any(value != value for value in values) else max(values)


@contextmanager
def _peak_rss() -> Iterator[dict[str, int]]:
    """Gives {"bytes": ...} after the block: the kernel's high-water mark, set back at its start."""
    peak: dict[str, int] = {}
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        yield peak
        return
    yield peak
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            peak["bytes"] = int(line.split()[1]) << 10
