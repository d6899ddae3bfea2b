"""From one model folder to another whose layers are pruned, with the quality before and after."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from sparseinfer.hub import text
from sparseinfer.hub.folder import Checkpoint, check_out, load, save
from sparseinfer.hub.quality import Quality, token_loss
from sparseinfer.prune import (
    ADMM,
    ERK,
    NM,
    OWL,
    RIA,
    Budget,
    CalibrationStats,
    DiagonalHessian,
    Gradient,
    Magnitude,
    Pattern,
    PruneReport,
    Random,
    Sensitivity,
    SparseGPT,
    SparseMethod,
    Taylor,
    Wanda,
    calibrate,
    prune_,
)

METHODS: Mapping[str, type[SparseMethod]] = {
    "magnitude": Magnitude,
    "random": Random,
    "gradient": Gradient,
    "taylor": Taylor,
    "wanda": Wanda,
    "ria": RIA,
    "hessian": DiagonalHessian,
    "sparsegpt": SparseGPT,
    "admm": ADMM,
}
BUDGETS: Mapping[str, Callable[[float], float | Budget]] = {
    "uniform": float,
    "erk": ERK,
    "owl": OWL,
    "sensitivity": Sensitivity,
}


@dataclass(frozen=True)
class Job:
    """What to prune, how, and where to.

    model        folder of the model
    out          folder to write, new or empty
    method       a key of METHODS
    sparsity     of all layers together, in [0, 1); None with a pattern that says it
    budget       a key of BUDGETS: how the sparsity is spread over the layers
    scope        as in the method; None: its own default
    pattern      of the zeros; None: unstructured
    calibration  file of text, for methods and budgets that look at a model's inputs, and for layer errors
    evaluation   file of other text, for the quality; None: the last fifth of the calibration text
    samples      most sequences to calibrate and to evaluate with, drawn by `seed`
    length       most tokens in each; of a model that predicts words exactly so many
    sequential   calibrate each block by what the pruned ones before it make of the text
    ignore       layers that stay dense, as in `prune_`; None: the output embeddings
    """

    model: Path
    out: Path
    _: KW_ONLY
    method: str = "magnitude"
    sparsity: float | None = None
    budget: str = "uniform"
    scope: Any = None
    pattern: Pattern | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    samples: int = 16
    length: int = 512
    sequential: bool = False
    ignore: Sequence[str] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """`before` and `after` are of the quality of that name; None and "" without text to judge by."""

    report: PruneReport
    quality: str
    before: float | None
    after: float | None


def run(job: Job, on_step: Callable[[str], None] = lambda step: None) -> Result:
    """Loads, judges, calibrates, prunes, judges again and writes; `on_step` is told what comes next.

    Nothing is written before all of it is done. TypeError or ValueError: a folder, text or argument is not as
    described. RuntimeError: transformers is missing.
    """
    check_out(job.out)
    method = _method(job)
    texts = {
        name: text.read(name, path)
        for name, path in (("calibration", job.calibration), ("eval", job.evaluation))
        if path is not None
    }
    on_step(f"loading {job.model}")
    checkpoint = load(job.model)
    batches, held_out = _samples(job, checkpoint, texts)
    quality = Quality.of(checkpoint, held_out) if held_out else None
    if quality:
        on_step(f"evaluating on {len(held_out)} samples")
    before = quality.measure() if quality else None
    report = _prune(job, checkpoint, method, batches, on_step)
    if quality:
        on_step("evaluating again")
    after = quality.measure() if quality else None
    on_step(f"writing {job.out}")
    save(checkpoint, job.out)
    return Result(report, quality.name if quality else "", before, after)


def table(result: Result) -> Table:
    """Layers that differ in their numbers only share a line: their mean sparsity and error."""
    found = Table()
    found.add_column("layers", overflow="fold")
    for name in ("count", "sparsity", "error"):
        found.add_column(name, justify="right")
    alike: dict[str, list[Any]] = {}
    for layer in result.report.layers:
        alike.setdefault(re.sub(r"\d+", "*", layer.fqn), []).append(layer)
    for name, layers in alike.items():
        part = PruneReport(tuple(layers))
        found.add_row(name, str(len(layers)), f"{part.sparsity:.4f}", _error(part))
    found.add_section()
    total = result.report
    found.add_row("all", str(len(total.layers)), f"{total.sparsity:.4f}", _error(total))
    return found


def _error(report: PruneReport) -> str:
    return "" if report.mean_error is None else f"{report.mean_error:.4f}"


def _method(job: Job) -> SparseMethod:
    if job.method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {job.method!r}")
    if job.budget not in BUDGETS:
        raise ValueError(f"budget: expected one of {', '.join(BUDGETS)}, got {job.budget!r}")
    given = {"pattern": job.pattern, "scope": job.scope, "seed": job.seed if job.method == "random" else None}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if job.sparsity is None:
        if not isinstance(job.pattern, NM):
            raise ValueError("sparsity: expected a fraction, got none (only a pattern of N:M says it)")
        if job.budget != "uniform":
            raise ValueError(f"budget: expected uniform with {job.pattern!r}, got {job.budget!r}")
        return METHODS[job.method](None, **options)
    return METHODS[job.method](BUDGETS[job.budget](job.sparsity), **options)


def _samples(
    job: Job, checkpoint: Checkpoint, texts: Mapping[str, str]
) -> tuple[list[text.Sample], list[text.Sample]]:
    """To calibrate with and to evaluate on; each is empty without its text."""
    found = {name: text.samples_of(name, checkpoint, texts[name], job.length) for name in texts}
    calibration, evaluation = found.get("calibration", []), found.get("eval", [])
    if calibration and not evaluation:
        calibration, evaluation = text.held_out(calibration)
    return (
        text.drawn(calibration, job.samples, job.seed),
        text.drawn(evaluation, job.samples, job.seed),
    )


def _prune(
    job: Job,
    checkpoint: Checkpoint,
    method: SparseMethod,
    batches: Sequence[text.Sample],
    on_step: Callable[[str], None],
) -> PruneReport:
    model = checkpoint.model
    budget = method.sparsity if isinstance(method.sparsity, Budget) else None
    needs = method.needs | (budget.needs if budget else frozenset())
    if needs and not batches:
        name = job.method if method.needs else job.budget
        raise ValueError(f"calibration: expected a text for {name}, got none")
    if "gradients" in needs and not checkpoint.predicts:
        raise ValueError(f"method: expected one without gradients for an encoder, got {job.method!r}")
    ignore = job.ignore if job.ignore is not None else [checkpoint.head] if checkpoint.head else None
    stats: CalibrationStats | None = None
    if batches and (budget or not job.sequential):
        on_step(f"calibrating on {len(batches)} samples")
        loss_fn = _loss if "gradients" in needs else None
        stats = calibrate(model, batches, loss_fn=loss_fn, ignore=ignore)
    on_step(f"pruning by {job.method}")
    return prune_(
        model,
        method,
        stats=stats,
        batches=batches if job.sequential else None,
        sequential=job.sequential,
        keep_masks=False,
        ignore=ignore,
    )


def _loss(output: Any, sample: text.Sample) -> Tensor:
    return token_loss(output.logits, sample)
