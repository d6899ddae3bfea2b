"""The main job on a real model: all-MiniLM-L6-v2, pruned, recovered, converted, checked and timed.

Everything comes from installed packages; nothing is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from sparseinfer._timing import Timing, interleave, num_threads
from sparseinfer.bench import minilm
from sparseinfer.bench.minilm import Batch, embed
from sparseinfer.convert import convert, explain

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
# The one that is trained back, for as many steps.
RECOVERED = 0.8
RECOVERY_STEPS = 1200
# How far an embedding may be from that of the same pruned model run densely, relative to its norm.
TOLERANCE = 1e-4

_COLUMNS = (
    "sparsity",
    "cosine",
    "recovered",
    "max rel diff",
    "dense ms",
    "sparse ms",
    "speed-up",
    "bytes",
    "sparse layers",
)


@dataclass(frozen=True)
class Row:
    """One sparsity; times are minima.

    `tokens` is the size of the batch, padding included. `cosine` is the mean over the sentences, after
    pruning alone; `recovered` the same after training back, None without. `nbytes` counts everything that
    the encoder holds.
    """

    tokens: int
    sparsity: float
    cosine: float
    recovered: float | None
    max_rel_diff: float
    dense_ms: float
    sparse_ms: float
    speed_up: float
    nbytes: int
    dense_nbytes: int
    sparse_layers: int
    layers: int


def run(
    sparsities: Sequence[float] = SPARSITIES,
    *,
    threads: int = 1,
    budget_s: float = 4.0,
    recovery_steps: int = RECOVERY_STEPS,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measures every sparsity; `on_step` is told what comes next, `steps(sparsities)` times in all.

    threads         of what is timed; pruning and recovery take every core
    recovery_steps  of training at RECOVERED; 0: none

    Raises RuntimeError when the packages of the `demo` extra are missing.
    """
    on_step("loading the model")
    batch = minilm.tokenize(sentences())
    on_step("choosing the faster attention")
    with num_threads(threads), torch.inference_mode():
        model = _faster_attention(batch)
    on_step("calibrating")
    with num_threads(os.cpu_count() or 1):
        texts = minilm.training_batches(40_000)
        stats = minilm.calibration(model, texts)
    rows = []
    for sparsity in sparsities:
        on_step(f"pruning to {sparsity:g}")
        with num_threads(os.cpu_count() or 1):
            pruned = minilm.pruned(model, sparsity, stats)
            with torch.inference_mode():
                cosine = _cosine(pruned, model, batch)
            recovers = recovery_steps > 0 and sparsity == RECOVERED
            if recovers:
                on_step(f"recovering at {sparsity:g}")
                minilm.recover(pruned, model, texts, steps=recovery_steps)
        with num_threads(threads), torch.inference_mode():
            recovered = _cosine(pruned, model, batch) if recovers else None
            rows.append(_row(model, pruned, batch, sparsity, cosine, recovered, budget_s, on_step))
    return rows


def steps(sparsities: Sequence[float], recovery_steps: int = RECOVERY_STEPS) -> int:
    """How often `run` calls `on_step`."""
    return 3 + 3 * len(sparsities) + (recovery_steps > 0 and RECOVERED in sparsities)


def sentences() -> list[str]:
    """The 32 sentences that the demo embeds. No model was trained on them here."""
    text = resources.files(__package__).joinpath("sentences.txt").read_text(encoding="utf-8")
    return text.splitlines()


def max_relative_difference(got: Tensor, expected: Tensor) -> float:
    """The largest ‖got − expected‖ / ‖expected‖ of any row; NaN where a row is not finite."""
    error = (got.double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1)
    return float(error.max())


def encoder_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers outside the embedding tables."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return sum(t.nbytes for name, t in tensors if not name.startswith("embeddings."))


def table(rows: Sequence[Row]) -> Table:
    """The result as one table; its first line is the dense model."""
    tokens = f", {rows[0].tokens} tokens" if rows else ""
    title = f"all-MiniLM-L6-v2, 32 sentences{tokens}"
    found = Table(title=title, title_justify="left", title_style="bold")
    for name in _COLUMNS:
        found.add_column(name, justify="right")
    if rows:
        first = rows[0]
        found.add_row(
            "dense", "1.000", "", "", f"{first.dense_ms:.1f}", "", "", f"{first.dense_nbytes:,}", ""
        )
    for row in rows:
        found.add_row(
            f"{row.sparsity:g}",
            f"{row.cosine:.3f}",
            "" if row.recovered is None else f"{row.recovered:.3f}",
            f"{row.max_rel_diff:.1e}",
            f"{row.dense_ms:.1f}",
            f"{row.sparse_ms:.1f}",
            f"{row.speed_up:.2f}",
            f"{row.nbytes:,}",
            f"{row.sparse_layers}/{row.layers}",
        )
    return found


def to_json(machine: dict[str, object], threads: int, rows: Sequence[Row]) -> dict[str, object]:
    return {"machine": machine, "threads": threads, "rows": [asdict(row) for row in rows]}


def _row(
    model: nn.Module,
    pruned: nn.Module,
    batch: Batch,
    sparsity: float,
    cosine: float,
    recovered: float | None,
    budget_s: float,
    on_step: Callable[[str], None],
) -> Row:
    on_step(f"converting at {sparsity:g}")
    fast = convert(pruned, example_inputs=batch)
    on_step(f"timing at {sparsity:g}")
    times = _time({"dense": model, "sparse": fast}, batch, budget_s)
    dense_ms, sparse_ms = (times[name].min_us / 1e3 for name in ("dense", "sparse"))
    layers = explain(fast).rows
    return Row(
        tokens=batch[0].numel(),
        sparsity=sparsity,
        cosine=cosine,
        recovered=recovered,
        max_rel_diff=max_relative_difference(embed(fast, batch), embed(pruned, batch)),
        dense_ms=dense_ms,
        sparse_ms=sparse_ms,
        speed_up=dense_ms / sparse_ms,
        nbytes=encoder_bytes(fast),
        dense_nbytes=encoder_bytes(model),
        sparse_layers=sum(layer.decision == "sparse" for layer in layers),
        layers=len(layers),
    )


def _cosine(model: nn.Module, dense: nn.Module, batch: Batch) -> float:
    return float(F.cosine_similarity(embed(model, batch), embed(dense, batch)).mean())


def _faster_attention(batch: Batch) -> nn.Module:
    models = {name: minilm.load_model(name) for name in ("sdpa", "eager")}
    times = _time(models, batch, budget_s=1.0)
    return models[min(times, key=lambda name: times[name].min_us)]


def _time(models: dict[str, nn.Module], batch: Batch, budget_s: float) -> dict[str, Timing]:
    calls = {name: [partial(embed, model, batch)] for name, model in models.items()}
    return interleave(calls, budget_s=budget_s, min_rounds=5)
