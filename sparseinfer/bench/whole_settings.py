"""The settings of a benchmark of whole models, which are also its command-line options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparseinfer._arguments import argument, positive
from sparseinfer.bench import models
from sparseinfer.bench.peers.registry import Peer
from sparseinfer.bench.settings import Settings

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
    """Models of `models.MODELS` by name, or folders; threads, sparsities, batches and dtypes to combine.

    `budget_s` is for each combination. Fields without a help are those of `settings.Settings`, with the same
    defaults. ValueError: an unknown model or dtype.
    """

    models: Sequence[str] = field(
        default=(),
        metadata=argument(
            f"{', '.join(models.MODELS)}, or a folder of Hugging Face, which is measured as it is unless "
            "--sparsity prunes it: whole models instead of a layer",
            flag="model",
            several=True,
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
    peers: Sequence[Peer] = Settings.peers

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in models.MODELS and not Path(name).is_dir():
                raise ValueError(f"model: expected one of {', '.join(models.MODELS)}, got {name!r}")
            if self.compiled and name in models.MODELS and not models.MODELS[name].tokens:
                raise ValueError(f"compiled: expected a model that generates tokens, got {name}")
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"dtypes: expected some of {', '.join(DTYPES)}, got {dtype!r}")
        for dense in self.dense:
            if dense not in DENSE:
                raise ValueError(f"dense: expected some of {', '.join(DENSE)}, got {dense!r}")

    @property
    def row_count(self) -> int:
        """How many measurements there will be."""
        sizes = (self.models, self.batches, self.sparsities, self.dtypes, self.threads)
        return math.prod(len(size) for size in sizes)
