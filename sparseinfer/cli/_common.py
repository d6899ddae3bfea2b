"""What the commands share: the --json option, output paths and the progress bar."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# What `add_subparsers` returns: every command adds its own parser.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# Wide enough for every table where the output is a file, which has no width of its own.
_FILE_WIDTH = 132


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option --json, which every measuring command has."""
    parser.add_argument("--json", type=output, metavar="FILE", help="write results and machine")


def output(text: str) -> Path:
    """A path for output, checked before the measurement starts rather than minutes later."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
    return path


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _FILE_WIDTH)


def progress_bar(output: Console) -> Progress:
    """A progress bar on the terminal that shows the tables, else on stderr: a file gets only tables."""
    done = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left:"), TimeRemainingColumn())
    shown = output if output.is_terminal else console(stderr=True)
    return Progress(
        *done, *left, console=shown, transient=True, redirect_stdout=False, disable=not shown.is_terminal
    )
