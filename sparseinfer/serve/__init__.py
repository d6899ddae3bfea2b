"""Converted models in inference servers.

`serve` is the own server, on one machine; `sparseinfer serve` calls it.
"""

from __future__ import annotations

from sparseinfer import _packages
from sparseinfer.serve.server.options import Options

__all__ = ["Options", "serve"]


def serve(options: Options) -> int:
    """Serves until SIGTERM or SIGINT, and then finishes running requests; the exit status.

    RuntimeError: a package of the extra `serve` is missing, or the model cannot be loaded.
    """
    try:
        from sparseinfer.serve.server.run import run
    except ImportError as error:
        raise _packages.missing("serve", error.name or "litserve", "serve") from error
    return run(options)
