"""The measurement of the demo: all-MiniLM-L6-v2 is pruned, retrained, converted, checked and timed.

Model and text come from installed packages; nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseinfer._arguments import argument, positive
from sparseinfer._timing import num_threads
from sparseinfer.bench import settings
from sparseinfer.bench.turns import fastest, time_models
from sparseinfer.convert import convert, explain
from sparseinfer.demo import minilm
from sparseinfer.demo.minilm import Batch, embed

# The sparsity whose model is trained back, chosen to show what training returns; one takes six minutes.
RECOVERED = 0.8
# How far an embedding may be from that of the same pruned model run densely, relative to its norm. Rounding
# alone makes about 2e-6 (the table in README.md); a wrong kernel makes far more than this.
TOLERANCE = 1e-4

# For calibration and training: some 1,200 batches, about as many as there are steps.
_TRAINING_SENTENCES = 40_000
# Seconds of timing to choose the attention by. Chosen, not measured.
_ATTENTION_BUDGET_S = 1.0


@dataclass(frozen=True)
class Settings:
    """What the demo measures."""

    sparsities: Sequence[float] = field(
        default=settings.Settings.sparsities,
        metadata=argument("fractions of zeros", flag="sparsity", read=float, metavar="S", several=True),
    )
    threads: int = field(
        default=1,
        metadata=argument("threads of the timed runs; pruning and training use every core", read=positive),
    )
    budget_s: float = field(
        default=4.0,
        metadata=argument(
            "seconds of timing for each sparsity", flag="budget", read=float, metavar="SECONDS"
        ),
    )
    recover: bool = field(
        default=False,
        metadata=argument(
            f"train the model of sparsity {RECOVERED} to recover quality, which takes six minutes more"
        ),
    )
    recovery_steps: int = 1200

    def recovers(self, sparsity: float) -> bool:
        """Whether the model of this sparsity is trained to recover quality."""
        return self.recover and sparsity == RECOVERED


@dataclass(frozen=True)
class Measurement:
    """One sparsity; times are minima.

    tokens     of the batch, padding included
    cosine     similarity to the dense model's embeddings after pruning alone, mean over the sentences
    recovered  the same after training as well; None if not trained
    nbytes     of everything that the encoder holds
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
    settings: Settings,
    on_step: Callable[[str], None] = lambda text: None,
    on_row: Callable[[Measurement], None] = lambda measurement: None,
) -> list[Measurement]:
    """Measures every sparsity; `on_row` is called with each result as soon as it is there.

    `on_step` is called before each step, `steps(settings)` times in all.

    Raises RuntimeError when the packages of the `demo` extra are missing.
    """
    on_step("loading the model")
    batch = minilm.tokenize(sentences())
    on_step("choosing the faster attention")
    with num_threads(settings.threads), torch.inference_mode():
        model = _faster_attention(batch)
    on_step("calibrating")
    with num_threads(os.cpu_count() or 1):
        texts = minilm.training_batches(_TRAINING_SENTENCES)
        stats = minilm.calibration(model, texts)
    measured = []
    for sparsity in settings.sparsities:
        on_step(f"pruning to {sparsity:g}")
        with num_threads(os.cpu_count() or 1):
            pruned = minilm.pruned(model, sparsity, stats)
            with torch.inference_mode():
                cosine = _cosine(pruned, model, batch)
            if settings.recovers(sparsity):
                on_step(f"recovering at {sparsity:g}")
                minilm.recover(pruned, model, texts, steps=settings.recovery_steps)
        with num_threads(settings.threads), torch.inference_mode():
            recovered = _cosine(pruned, model, batch) if settings.recovers(sparsity) else None
            on_step(f"converting at {sparsity:g}")
            fast = convert(pruned, example_inputs=batch)
            on_step(f"timing at {sparsity:g}")
            times = time_models({"dense": model, "sparse": fast}, embed, batch, budget_s=settings.budget_s)
            dense_ms, sparse_ms = (times[name].min_us / 1e3 for name in ("dense", "sparse"))
            layers = explain(fast).rows
            measured.append(
                Measurement(
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
            )
            on_row(measured[-1])
    return measured


def steps(settings: Settings) -> int:
    """How many times `run` calls `on_step`."""
    return 3 + 3 * len(settings.sparsities) + sum(map(settings.recovers, settings.sparsities))


def sentences() -> list[str]:
    """The 32 sentences that the demo embeds; they are not used for training."""
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


def _cosine(model: nn.Module, dense: nn.Module, batch: Batch) -> float:
    return float(F.cosine_similarity(embed(model, batch), embed(dense, batch)).mean())


def _faster_attention(batch: Batch) -> nn.Module:
    models = {name: minilm.load_model(name) for name in ("sdpa", "eager")}
    return models[fastest(time_models(models, embed, batch, budget_s=_ATTENTION_BUDGET_S))]
