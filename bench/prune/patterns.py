"""What zeros in patterns cost the demo's model in quality, and what they gain in speed here, written as JSON.

    python bench/prune/patterns.py quality layers encoder --json bench/results/patterns.json

quality   cosine of the embeddings to the dense model's, of the demo's sentences, which no training reads:
          after ADMM alone, and after a short recovery
layers    the fastest kernel for the model's three shapes of layers over the best dense product, one thread
encoder   the whole encoder, converted, over the dense one as it is and after `convert`, one thread

The parts and all patterns may be run one after the other: the file keeps what is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from sparseinfer import ops
from sparseinfer._machine import describe_machine
from sparseinfer._timing import geometric_mean, num_threads
from sparseinfer.bench.candidate import SPARSE
from sparseinfer.bench.layer import run
from sparseinfer.bench.settings import Settings
from sparseinfer.bench.turns import time_models
from sparseinfer.convert import convert, explain
from sparseinfer.demo import minilm
from sparseinfer.demo.experiment import sentences
from sparseinfer.prune import Block, CalibrationStats, Magnitude, Pattern, prune_, registry

PATTERNS = ("unstructured", "4x1", "16x1", "16x32")
# For calibration and training; a short recovery reads a part of them.
_SENTENCES = 40_000
_BUDGET_S = 4.0
# The layers of the model, and numbers of tokens.
_SHAPES = ((384, 384), (1536, 384), (384, 1536))
_TOKENS = (1, 16, 128)
_LAYER_BUDGET_S = 0.5


@dataclass(frozen=True)
class Quality:
    """Of one pruned model: mean cosine of embeddings to the dense ones; mean relative error of its layers."""

    pattern: str
    sparsity: float
    cosine: float
    recovered: float
    mean_error: float


@dataclass(frozen=True)
class Layers:
    """Geometric mean over the shapes of the fastest kernel's speed-up over the best dense product."""

    pattern: str
    sparsity: float
    tokens: int
    x_dense: float
    kernels: Sequence[str]


@dataclass(frozen=True)
class Encoder:
    """Of one pruned and converted encoder; times are minima of runs that took turns.

    speed_up         over the encoder as it is
    over_best_dense  over the dense encoder after `convert`
    kernels          how many layers run which kernel for so many tokens
    """

    pattern: str
    sparsity: float
    tokens: int
    ms: float
    speed_up: float
    over_best_dense: float
    kernels: Mapping[str, int]


def quality(patterns: Sequence[str], sparsity: float, steps: int) -> Iterator[Quality]:
    dense, texts, batch = (
        minilm.load_model(),
        minilm.training_batches(_SENTENCES),
        minilm.tokenize(sentences()),
    )
    stats = minilm.calibration(dense, texts)
    for name in patterns:
        pruned = minilm.pruned(dense, sparsity, stats, registry.pattern(name))
        error = _mean_error(dense, pruned, stats)
        alone = _cosine(pruned, dense, batch)
        minilm.recover(pruned, dense, texts, steps=steps, seconds=None)
        yield Quality(name, sparsity, alone, _cosine(pruned, dense, batch), error)


def _mean_error(dense: nn.Module, pruned: nn.Module, stats: CalibrationStats) -> float:
    """Mean over the layers of ‖X·(W - Ŵ)ᵀ‖² / ‖X·Wᵀ‖²."""
    errors = []
    for name, layer in dense.named_modules():
        if name in stats:
            gram, before = stats[name].gram, layer.weight.detach()
            change = before - pruned.get_submodule(name).weight.detach()
            errors.append(float(((change @ gram) * change).sum() / ((before @ gram) * before).sum()))
    return sum(errors) / len(errors)


@torch.inference_mode()
def _cosine(model: nn.Module, dense: nn.Module, batch: minilm.Batch) -> float:
    return float(F.cosine_similarity(minilm.embed(model, batch), minilm.embed(dense, batch)).mean())


def layers(patterns: Sequence[str], sparsity: float) -> Iterator[Layers]:
    for name in patterns:
        pattern = registry.pattern(name)
        block = (pattern.r, pattern.c) if isinstance(pattern, Block) else None
        settings = Settings(
            shapes=_SHAPES, sparsities=(sparsity,), tokens=_TOKENS, block=block, budget_s=_LAYER_BUDGET_S
        )
        measured = [one for one in run(settings) if one.kind == SPARSE]
        for tokens in _TOKENS:
            best = [
                max(
                    (one for one in measured if (one.n, one.k, one.tokens) == (n, k, tokens)),
                    key=lambda one: one.x_dense,
                )
                for n, k in _SHAPES
            ]
            names = [one.name.rsplit("__", 1)[0] for one in best]
            yield Layers(name, sparsity, tokens, geometric_mean([one.x_dense for one in best]), names)


def encoder(patterns: Sequence[str], sparsity: float) -> Iterator[Encoder]:
    """Masks by magnitude: what counts for the time is how the zeros lie, not which weights they are."""
    batch = minilm.tokenize(sentences())
    with num_threads(1), torch.inference_mode():
        models = {"dense": minilm.load_model()}
        models["best dense"] = convert(minilm.load_model(), example_inputs=batch)
        for name in patterns:
            models[name] = convert(_by_magnitude(registry.pattern(name), sparsity), example_inputs=batch)
        times = {
            name: timing.min_us / 1e3
            for name, timing in time_models(
                models, minilm.embed, batch, budget_s=_BUDGET_S * len(models)
            ).items()
        }
    for name in patterns:
        rows = [row for row in explain(models[name]).rows if row.dense_us]
        kernels = [row.kernels[-1][1] if row.kernels else row.decision for row in rows]
        yield Encoder(
            name,
            sparsity,
            batch[0].numel(),
            times[name],
            times["dense"] / times[name],
            times["best dense"] / times[name],
            {kernel: kernels.count(kernel) for kernel in sorted(set(kernels))},
        )


def _by_magnitude(pattern: Pattern, sparsity: float) -> nn.Module:
    model = minilm.load_model()
    prune_(model, Magnitude(sparsity, pattern=pattern), targets=minilm.LAYERS, keep_masks=False)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="+", choices=("quality", "layers", "encoder"))
    parser.add_argument(
        "--pattern", nargs="+", default=list(PATTERNS), help="unstructured, or blocks as 16x1"
    )
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=300, help="of the recovery")
    parser.add_argument("--json", type=Path, help="a file, of which other parts and patterns are kept")
    options = parser.parse_args()
    console = Console(stderr=True)
    parts: dict[str, Iterator[Any]] = {}
    if "quality" in options.part:
        parts["quality"] = quality(options.pattern, options.sparsity, options.steps)
    if "layers" in options.part:
        parts["layers"] = layers(options.pattern, options.sparsity)
    if "encoder" in options.part:
        parts["encoder"] = encoder(options.pattern, options.sparsity)
    for part, measured in parts.items():
        rows = []
        for one in measured:
            rows.append(asdict(one))
            console.print(one)
        if options.json is not None:
            settings = {"steps": options.steps} if part == "quality" else {"threads": 1}
            _write(options.json, part, {"settings": settings, "rows": rows})


def _write(path: Path, part: str, content: Mapping[str, Any]) -> None:
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    measured = {row["pattern"] for row in content["rows"]}
    others = [row for row in kept.get(part, {}).get("rows", []) if row["pattern"] not in measured]
    kept[part] = {
        "machine": describe_machine(ops.active_isa()),
        **content,
        "rows": [*others, *content["rows"]],
    }
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
