"""sparseinfer prune"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sparseinfer.cli._common import Commands, console, positive

if TYPE_CHECKING:
    from sparseinfer.prune import Pattern

_METHODS = "magnitude, random, gradient, taylor, wanda, ria, hessian, sparsegpt, admm"


def add(commands: Commands) -> None:
    parser = commands.add_parser("prune", help="prune a local Hugging Face model folder")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="config.json, weights and tokenizer")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder to write")
    parser.add_argument("--method", default="sparsegpt", help=f"{_METHODS}; default: sparsegpt")
    parser.add_argument("--sparsity", type=float, metavar="S", help="fraction in [0, 1); not with N:M")
    parser.add_argument(
        "--budget", default="uniform", help="of each layer: uniform, erk, owl, sensitivity; default: uniform"
    )
    parser.add_argument("--pattern", type=_pattern, metavar="P", help="N:M, RxC (blocks), row or column")
    parser.add_argument("--scope", help="layer, row or global; default: the method's own")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="text to see the layers' inputs by")
    parser.add_argument(
        "--eval",
        type=Path,
        metavar="FILE",
        help="other text to judge by; default: the last fifth of the calibration text",
    )
    parser.add_argument("--samples", type=positive, default=16, help="sequences of each text; default: 16")
    parser.add_argument("--length", type=positive, default=512, help="tokens of a sequence; default: 512")
    parser.add_argument("--sequential", action="store_true", help="calibrate each block as pruned so far")
    parser.add_argument(
        "--ignore", nargs="+", metavar="NAME", help="layers that stay dense; default: the output embeddings"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from sparseinfer.hub import job

    steps, out = console(stderr=True), console()
    result = job.run(
        job.Job(
            options.model,
            options.out,
            method=options.method,
            sparsity=options.sparsity,
            budget=options.budget,
            scope=options.scope,
            pattern=options.pattern,
            calibration=options.calibration,
            evaluation=options.eval,
            samples=options.samples,
            length=options.length,
            sequential=options.sequential,
            ignore=options.ignore,
            seed=options.seed,
        ),
        on_step=lambda step: steps.print(step, highlight=False, soft_wrap=True, markup=False),
    )
    out.print(job.table(result))
    if result.report.unlooked:
        out.print(result.report.unlooked_text, highlight=False, soft_wrap=True, markup=False)
    if result.before is not None and result.after is not None:
        out.print(f"{result.quality}: {result.before:.3f} before, {result.after:.3f} after", highlight=False)
    return 0


def _pattern(text: str) -> Pattern:
    from sparseinfer.prune import NM, Block, Column, Row, Unstructured

    named: dict[str, Pattern] = {"unstructured": Unstructured(), "row": Row(), "column": Column()}
    if text in named:
        return named[text]
    if match := re.fullmatch(r"(\d+)([:x])(\d+)", text):
        first, second = int(match[1]), int(match[3])
        try:
            return NM(first, second) if match[2] == ":" else Block(first, second)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError(f"expected a pattern such as 2:4, 16x16, row or column, got {text!r}")
