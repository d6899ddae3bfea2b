"""sparseinfer prune"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from sparseinfer.cli._common import Commands, console, positive
from sparseinfer.hub.job import Argument, Job, arguments


def add(commands: Commands) -> None:
    """The arguments are those of Job."""
    parser = commands.add_parser("prune", help="prune a local Hugging Face model folder")
    defaults = {field.name: field.default for field in fields(Job)}
    for name, argument in arguments().items():
        default = defaults[name]
        how: dict[str, Any] = {"help": argument.help}
        if default is False:
            how["action"] = "store_true"
        else:
            how |= {"type": _type_of(argument), "metavar": argument.metavar}
        if argument.several:
            how["nargs"] = "+"
        if argument.positional:
            parser.add_argument(name, **how)
            continue
        if default is MISSING:
            how["required"] = True
        elif default is not None:
            how["default"] = default
            if default is not False:
                how["help"] += f"; default: {default}"
        parser.add_argument(f"--{argument.flag or name}", dest=name, **how)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from sparseinfer.hub.result import table
    from sparseinfer.hub.run import run

    steps, out = console(stderr=True), console()
    job = Job(**{name: getattr(options, name) for name in arguments()})
    result = run(job, on_step=lambda step: steps.print(step, highlight=False, soft_wrap=True, markup=False))
    out.print(table(result))
    if result.report.unlooked:
        out.print(result.report.unlooked_text, highlight=False, soft_wrap=True, markup=False)
    if result.before is not None and result.after is not None:
        out.print(f"{result.quality}: {result.before:.3f} before, {result.after:.3f} after", highlight=False)
    return 0


def _type_of(argument: Argument) -> Callable[[str], Any]:
    """`type` of argparse, which shows the text of an ArgumentTypeError only."""
    if argument.positive:
        return positive
    if isinstance(argument.read, type):
        return argument.read

    def read(text: str) -> Any:
        try:
            return argument.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
