"""Optional packages, imported when they are first needed; an error says how to install a missing one."""

from __future__ import annotations

import os
from typing import Any


def transformers(asker: str, extra: str) -> Any:
    """Imports transformers, offline and without progress output. RuntimeError, as `missing`, without it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError:
        raise missing(asker, "transformers", extra) from None
    # A checkpoint may hold parts that are not used, such as a pooler: no report about that.
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def missing(asker: str, package: str, extra: str) -> RuntimeError:
    """The error to raise: `asker` needs the package, and `pip install 'sparseinfer[extra]'` installs it."""
    hint = f"pip install 'sparseinfer[{extra}]'"
    return RuntimeError(f"{asker}: expected the package {package}, got none ({hint})")
