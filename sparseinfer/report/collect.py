"""Collects what there is to report of a folder or file; times and judges the model where it can be run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from sparseinfer._arguments import argument, positive
from sparseinfer._machine import describe_machine
from sparseinfer._timing import num_threads
from sparseinfer.bench.compare import benchmark
from sparseinfer.convert import LayerReport, convert, densify_, explain
from sparseinfer.convert.record import from_json
from sparseinfer.hub import history, text
from sparseinfer.hub.folder import Checkpoint, load
from sparseinfer.hub.quality import embeddings, perplexity
from sparseinfer.io import File
from sparseinfer.io.summary import Summary, summary_of
from sparseinfer.ops import active_isa
from sparseinfer.report.content import Content, Latency, Quality

# Of a text: enough to tell a good model from a bad one within a minute. Chosen, not measured.
_SAMPLES, _LENGTH = 16, 128


@dataclass(frozen=True)
class ReportJob:
    """What to report about, and where to. The `help` of each field describes it."""

    model: Path = field(
        metadata=argument(
            "folder of a Hugging Face model, converted, pruned or dense, or a file of sparseinfer.save, "
            "which is read but not run",
            positional=True,
            read=Path,
            metavar="DIR|FILE",
        )
    )
    out: Path = field(metadata=argument("page to write", read=Path, metavar="FILE"))
    _: KW_ONLY
    tokens: tuple[int, ...] = field(
        default=(1, 128),
        metadata=argument("tokens of the inputs to time", read=positive, several=True, metavar="M"),
    )
    dense: Path | None = field(
        default=None,
        metadata=argument(
            "folder of the model before pruning, to compare quality with", read=Path, metavar="DIR"
        ),
    )
    evaluation: Path | None = field(
        default=None,
        metadata=argument("text to measure the quality on", flag="eval", read=Path, metavar="FILE"),
    )
    threads: int = field(default=1, metadata=argument("number of torch threads", read=positive))
    budget_s: float = field(
        default=3.0,
        metadata=argument("seconds of timing for each input", flag="budget", read=float, metavar="SECONDS"),
    )
    read_only: bool = field(
        default=False,
        metadata=argument("do not run the model: only what is stored is told", flag="read-only"),
    )


def collect(job: ReportJob, on_step: Callable[[str], None] = lambda step: None) -> Content:
    """The content of the report that a job asks for.

    ValueError: no folder or file of a model, one that is damaged, or an option that it does not suit.
    RuntimeError: a package is missing.
    """
    on_step(f"reading {job.model}")
    summary = summary_of(job.model)
    folder = job.model if job.model.is_dir() else job.model.parent
    stored = Content(
        name=(job.model if job.model.is_dir() else job.model.with_suffix("")).resolve().name,
        kind=summary.model,
        machine=describe_machine(active_isa()),
        layers=tuple(_stored_rows(summary)),
        summary=summary,
        pruning=history.read(folder),
    )
    if job.read_only or not (job.model / "config.json").is_file():
        for name in ("dense", "evaluation"):
            if getattr(job, name) is not None:
                raise ValueError(
                    f"{name}: expected none of a model that is not run, got {getattr(job, name)}"
                )
        return replace(stored, quality=_recorded_quality(stored))
    with num_threads(job.threads):
        return _run(job, stored, on_step)


def _stored_rows(summary: Summary) -> Iterator[LayerReport]:
    """What `explain` said when the files were written."""
    for name in summary.files:
        for prefix, records in File(Path(name)).manifest.conversions.items():
            for content in records:
                try:
                    rows = from_json(content).rows
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
                for row in rows:
                    yield replace(row, layer=f"{prefix}.{row.layer}") if prefix else row


def _run(job: ReportJob, stored: Content, on_step: Callable[[str], None]) -> Content:
    on_step(f"loading {job.model}")
    checkpoint = load(job.model)
    if checkpoint.has_decoder:
        raise ValueError("model: expected an encoder or a decoder, got an encoder-decoder (use --read-only)")
    model = checkpoint.model
    sizes = sorted({min(m, checkpoint.max_length) for m in job.tokens})
    converted_here = not stored.layers
    if converted_here:
        on_step("converting")
        dense = model
        example = {"input_ids": torch.zeros(1, sizes[-1], dtype=torch.int64)}
        model = convert(model, example_inputs=example, tokens=tuple(sizes))
    else:
        dense = densify_(copy.deepcopy(model))
    latencies = []
    for size in sizes:
        on_step(f"timing {size} tokens")
        inputs = _inputs(checkpoint, size)
        compared = benchmark(dense, model, inputs, budget_s=job.budget_s)
        latencies.append(Latency(f"{size} token{'s' if size > 1 else ''}", compared))
    return Content(
        name=stored.name,
        kind=stored.kind or type(checkpoint.model).__name__,
        machine=stored.machine,
        layers=explain(model).rows,
        latencies=latencies,
        quality=_quality(job, checkpoint, stored, on_step),
        summary=stored.summary,
        pruning=stored.pruning,
        converted_here=converted_here,
    )


def _inputs(checkpoint: Checkpoint, tokens: int) -> dict[str, Any]:
    """One sequence of random tokens, and for a decoder no cache, whose state would differ between calls."""
    model: Any = checkpoint.model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    return {"input_ids": ids, **({"use_cache": False} if checkpoint.is_causal else {})}


def _quality(
    job: ReportJob, checkpoint: Checkpoint, stored: Content, on_step: Callable[[str], None]
) -> Quality | None:
    """On the text of the job; without one what `sparseinfer prune` measured."""
    if job.evaluation is None:
        if job.dense is not None:
            raise ValueError("eval: expected a text to compare the quality on, got none")
        return _recorded_quality(stored)
    on_step("judging")
    written = text.read("eval", job.evaluation)
    if job.dense is None and not checkpoint.predicts:
        raise ValueError(
            "dense: expected the folder of the dense model, to compare embeddings with, got none"
        )
    before = None if job.dense is None else load(job.dense)
    samples = text.drawn(text.samples_of("eval", checkpoint, written, _LENGTH), _SAMPLES, 0)
    if checkpoint.predicts:
        models = {"dense": before, "this model": checkpoint}
        steps = {step: perplexity(one.model, samples) for step, one in models.items() if one is not None}
        return Quality("perplexity", steps, low_is_good=True)
    assert before is not None
    a, b = embeddings(before.model, samples), embeddings(checkpoint.model, samples)
    if a.shape != b.shape:
        raise ValueError(f"dense: expected embeddings of shape {list(b.shape)}, got {list(a.shape)}")
    similarity = float(F.cosine_similarity(a, b).mean())
    return Quality("cosine to dense", {"dense": 1.0, "this model": similarity})


def _recorded_quality(stored: Content) -> Quality | None:
    pruning = stored.pruning
    if pruning is None or not pruning.quality:
        return None
    return Quality(pruning.quality, pruning.values, low_is_good=pruning.quality == "perplexity")
