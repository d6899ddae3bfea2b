"""sparseinfer prune: prunes a local Hugging Face model folder."""

from __future__ import annotations

import argparse

from sparseinfer.cli._common import Commands, console
from sparseinfer.cli._options import add_options, filled
from sparseinfer.hub.job import Job


def add(commands: Commands) -> None:
    parser = commands.add_parser("prune", help="prune a local Hugging Face model folder")
    add_options(parser, Job)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from sparseinfer.hub.result import table
    from sparseinfer.hub.run import run

    steps, out = console(stderr=True), console()
    result = run(
        filled(Job, options),
        on_step=lambda step: steps.print(step, highlight=False, soft_wrap=True, markup=False),
    )
    if result.structured is not None:
        out.print(str(result.structured), highlight=False, soft_wrap=True, markup=False)
    if result.report.layers:
        out.print(table(result))
    if result.report.unlooked:
        out.print(result.report.unlooked_text, highlight=False, soft_wrap=True, markup=False)
    if result.before is not None and result.after is not None:
        smaller = "" if result.smaller is None else f"{result.smaller:.3f} with fewer units, "
        text = f"{result.quality}: {result.before:.3f} before, {smaller}{result.after:.3f} after"
        in_int8 = "" if result.in_int8 is None else f", {result.in_int8:.3f} in int8"
        out.print(text + in_int8, highlight=False)
    if result.quantized is not None:
        out.print(result.quantized.summary, highlight=False, soft_wrap=True, markup=False)
    return 0
