"""sparseinfer serve: an HTTP server for one model folder."""

from __future__ import annotations

import argparse

from sparseinfer.cli._common import Commands
from sparseinfer.cli._options import add_options, filled
from sparseinfer.serve import Options


def add(commands: Commands) -> None:
    parser = commands.add_parser("serve", help="serve a local Hugging Face model folder over HTTP")
    add_options(parser, Options)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from sparseinfer.serve import serve

    return serve(filled(Options, options))
