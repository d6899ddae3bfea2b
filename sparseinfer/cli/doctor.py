"""sparseinfer doctor"""

from __future__ import annotations

import argparse

from sparseinfer.cli._common import Commands, console


def add(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="what this installation can do on this machine")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from sparseinfer.bench import doctor

    console().print(doctor.table())
    return 0
