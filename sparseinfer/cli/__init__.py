"""The command line: `sparseinfer` and one of `_COMMANDS`, a module for each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.markup import escape

from sparseinfer.cli import bench, convert, demo, doctor, inspect, prune, report, serve
from sparseinfer.cli._common import console

_COMMANDS = (demo, prune, convert, inspect, serve, bench, report, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 success, 1 wrong result or error, 2 bad usage."""
    options = parser().parse_args(argv)
    try:
        status: int = options.command(options)
    except (OSError, ValueError, RuntimeError) as error:
        text = f"[bold red]error:[/] {escape(str(error))}"
        console(stderr=True).print(text, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """Of `sparseinfer` with all its commands."""
    whole = argparse.ArgumentParser("sparseinfer", description="Pruned PyTorch models that run faster.")
    commands = whole.add_subparsers(required=True)
    for command in _COMMANDS:
        command.add(commands)
    commands.metavar = f"{{{','.join(commands.choices)}}}"
    return whole
