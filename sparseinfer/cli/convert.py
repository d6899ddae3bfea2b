"""sparseinfer convert: converts a model and writes it as a file that loads converted."""

from __future__ import annotations

import argparse

from sparseinfer.cli._common import Commands, console
from sparseinfer.cli._options import add_options, filled
from sparseinfer.hub.conversion import Conversion


def add(commands: Commands) -> None:
    parser = commands.add_parser("convert", help="convert a pruned model and store it with what was decided")
    add_options(parser, Conversion)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from sparseinfer.cli.inspect import table
    from sparseinfer.hub.conversion import run

    steps, out = console(stderr=True), console()
    summary, explanation = run(
        filled(Conversion, options),
        on_step=lambda step: steps.print(step, highlight=False, soft_wrap=True, markup=False),
    )
    if explanation is not None:
        sparse = sum(row.decision == "sparse" for row in explanation.rows)
        out.print(f"{sparse} of {len(explanation.rows)} layers sparse", highlight=False)
    out.print(table(summary))
    return 0
