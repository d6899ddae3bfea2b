"""Prunes a model folder into a new one, and measures the quality before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sparseinfer.hub import history, text
from sparseinfer.hub.folder import Checkpoint, check_out, copy_modules, load, save, save_sparse
from sparseinfer.hub.job import Job
from sparseinfer.hub.quality import Quality, token_loss
from sparseinfer.hub.result import Result
from sparseinfer.prune import (
    Budget,
    CalibrationStats,
    PruneReport,
    StructuredReport,
    calibrate,
    prune_,
    prune_structured_,
)
from sparseinfer.prune.structured.importance import importance_of
from sparseinfer.quantize import QuantizeReport, quantize_
from sparseinfer.quantize.registry import quantizers


def run(job: Job, on_step: Callable[[str], None] = lambda step: None) -> Result:
    """Loads, evaluates, calibrates, prunes, evaluates again and saves; `on_step` gets the name of each step.

    Where the job says so, units are removed first, with calibration and evaluation of their own.
    Where the job says so, the pruned model is calibrated again, quantized, and evaluated once more.
    Nothing is written before all of it is done. TypeError or ValueError: a folder or text is not as
    described, or the job does not suit the model. RuntimeError: transformers is missing.
    """
    check_out(job.out)
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
    structured = _prune_structured(job, checkpoint, batches, on_step) if job.structured else None
    smaller = quality.measure() if quality and structured else None
    report = _prune(job, checkpoint, batches, on_step)
    if quality:
        on_step("evaluating again")
    after = quality.measure() if quality else None
    quantized = _quantize(job, checkpoint, batches, on_step) if job.quantize else None
    in_int8 = quality.measure() if quality and quantized else None
    on_step(f"writing {job.out}")
    if job.compress or structured:
        save_sparse(checkpoint, checkpoint.model, job.out)
    else:
        save(checkpoint, job.out)
    copy_modules(job.model, job.out)
    name = quality.name if quality else ""
    result = Result(report, name, before, after, quantized, in_int8, structured, smaller)
    history.write(job.out, history.of(job, result))
    return result


def _samples(
    job: Job, checkpoint: Checkpoint, texts: Mapping[str, str]
) -> tuple[list[text.Sample], list[text.Sample]]:
    """To calibrate with and to evaluate on; each is empty without its text."""
    samples = {name: text.samples_of(name, checkpoint, texts[name], job.length) for name in texts}
    calibration, evaluation = samples.get("calibration", []), samples.get("eval", [])
    if calibration and not evaluation:
        calibration, evaluation = text.held_out(calibration)
    return (
        text.drawn(calibration, job.samples, job.seed),
        text.drawn(evaluation, job.samples, job.seed),
    )


def _prune_structured(
    job: Job,
    checkpoint: Checkpoint,
    batches: Sequence[text.Sample],
    on_step: Callable[[str], None],
) -> StructuredReport:
    needs = importance_of(job.importance).needs | ({"gram"} if job.update else set())
    if needs and not batches:
        raise ValueError(f"calibration: expected a text for {job.importance} or --update, got none")
    stats: CalibrationStats | None = None
    ignore = _ignored(job, checkpoint)
    if needs:
        on_step(f"calibrating on {len(batches)} samples")
        loss_fn = _loss if "gradients" in needs else None
        stats = calibrate(checkpoint.model, batches, gram="gram" in needs, loss_fn=loss_fn, ignore=ignore)
    on_step(f"removing {job.structured:g} of the heads and neurons by {job.importance}")
    example = batches[0] if batches else text.any_sample(checkpoint)
    assert job.structured is not None
    return prune_structured_(
        checkpoint.model,
        example,
        job.importance,
        ratio=job.structured,
        stats=stats,
        update=job.update,
        ignore=job.ignore,
    )


def _prune(
    job: Job,
    checkpoint: Checkpoint,
    batches: Sequence[text.Sample],
    on_step: Callable[[str], None],
) -> PruneReport:
    model, method = checkpoint.model, job.pruning_method()
    if method is None:
        return PruneReport(())
    needs = method.all_needs
    if needs and not batches:
        name = job.method if method.needs else job.budget
        raise ValueError(f"calibration: expected a text for {name}, got none")
    if "gradients" in needs and not checkpoint.predicts:
        raise ValueError(f"method: expected one without gradients for an encoder, got {job.method!r}")
    ignore = _ignored(job, checkpoint)
    stats: CalibrationStats | None = None
    if batches and (isinstance(method.sparsity, Budget) or not job.sequential):
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


def _quantize(
    job: Job,
    checkpoint: Checkpoint,
    batches: Sequence[text.Sample],
    on_step: Callable[[str], None],
) -> QuantizeReport:
    assert job.quantize is not None
    method, ignore = quantizers()[job.quantize](), _ignored(job, checkpoint)
    if method.needs and not batches:
        raise ValueError(f"calibration: expected a text for {job.quantize}, got none")
    stats: CalibrationStats | None = None
    if batches:
        on_step("calibrating the pruned model")
        stats = calibrate(checkpoint.model, batches, ranges="ranges" in method.needs, ignore=ignore)
    on_step(f"quantizing by {job.quantize}")
    return quantize_(checkpoint.model, method, stats=stats, ignore=ignore)


def _ignored(job: Job, checkpoint: Checkpoint) -> Sequence[str] | None:
    if job.ignore is not None:
        return job.ignore
    return [checkpoint.head] if checkpoint.head else None


def _loss(output: Any, sample: text.Sample) -> Tensor:
    return token_loss(output.logits, sample)
