"""Converts the model of a folder, or stores a file's weights in the smallest formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import torch

from sparseinfer._arguments import argument, positive
from sparseinfer.convert import ConvertOptions, Explanation, convert, explain
from sparseinfer.convert.options import PRECISIONS
from sparseinfer.formats.dtypes import DTYPES
from sparseinfer.hub import history
from sparseinfer.hub.folder import check_out, copy_modules, load, save_sparse
from sparseinfer.io.compress import compress_file
from sparseinfer.io.summary import Summary, summary_of


def _dtype(text: str) -> torch.dtype:
    names = [name for name in DTYPES if name != "f32"]
    if text not in names:
        raise ValueError(f"expected one of {', '.join(names)}, got {text!r}")
    return DTYPES[text]


def _memory(text: str) -> str | float:
    return text if text in ("speed", "compact") else float(text)


@dataclass(frozen=True)
class Conversion:
    """What to convert, how, and where to. The `help` of each field describes it.

    TypeError or ValueError if an argument is not as described.
    """

    model: Path = field(
        metadata=argument(
            "folder with config.json, weights and tokenizer, or a file of safetensors, whose weights are "
            "only stored in the smallest formats",
            positional=True,
            read=Path,
            metavar="DIR|FILE",
        )
    )
    out: Path = field(metadata=argument("new or empty folder to write", read=Path, metavar="DIR"))
    _: KW_ONLY
    tokens: tuple[int, ...] = field(
        default=(1, 16, 128),
        metadata=argument("numbers of tokens to plan for", read=positive, several=True, metavar="M"),
    )
    precision: str = field(
        default="keep",
        metadata=argument(f"what layers may be computed in where that is faster: {', '.join(PRECISIONS)}"),
    )
    weights: torch.dtype | None = field(
        default=None,
        metadata=argument(
            "round sparse weights to bf16 or f16; default: keep them", read=_dtype, metavar="DTYPE"
        ),
    )
    activations: torch.dtype | None = field(
        default=None,
        metadata=argument("round inputs of sparse layers to bf16, too", read=_dtype, metavar="DTYPE"),
    )
    memory: str | float = field(
        default=1.0,
        metadata=argument(
            "how many times its dense bytes a layer's packings may take, or speed or compact", read=_memory
        ),
    )
    budget: float = field(
        default=60.0,
        metadata=argument("seconds to measure layers for, at most", read=float, metavar="SECONDS"),
    )
    predict: bool = field(default=False, metadata=argument("predict times; measure none"))
    ignore: tuple[str, ...] = field(
        default=(), metadata=argument("layers that stay dense", several=True, metavar="NAME")
    )

    def options(self) -> ConvertOptions:
        return ConvertOptions(
            tokens=tuple(self.tokens),
            precision=self.precision,
            weights=self.weights,
            activations=self.activations,
            memory=self.memory,
            measure=not self.predict,
            budget_s=self.budget,
        )


def run(
    job: Conversion, on_step: Callable[[str], None] = lambda step: None
) -> tuple[Summary, Explanation | None]:
    """Convert and write; what was written, and what was decided. Errors as for `sparseinfer prune`."""
    options = job.options()
    check_out(job.out)
    if job.model.is_file():
        on_step(f"writing {job.out}")
        job.out.mkdir(parents=True, exist_ok=True)
        compress_file(job.model, job.out / job.model.name)
        return summary_of(job.out), None
    on_step(f"loading {job.model}")
    checkpoint = load(job.model)
    if checkpoint.has_decoder:
        raise ValueError(
            "model: expected an encoder or a decoder, got an encoder-decoder (use convert and save)"
        )
    on_step(f"converting for {', '.join(map(str, options.tokens or ()))} tokens")
    count = min(max(job.tokens), checkpoint.max_length)
    example = {"input_ids": torch.zeros(1, count, dtype=torch.int64)}
    converted = convert(
        checkpoint.model, example_inputs=example, ignore=list(job.ignore) or None, options=options
    )
    on_step(f"writing {job.out}")
    save_sparse(checkpoint, converted, job.out)
    copy_modules(job.model, job.out)
    history.carry(job.model, job.out)
    return summary_of(job.out), explain(converted)
