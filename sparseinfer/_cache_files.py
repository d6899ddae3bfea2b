"""Files in the user's cache folder, mostly JSON. Nothing here fails: what cannot be read counts as empty."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Set to a directory to keep the files there instead of the user's cache folder.
DIRECTORY = "SPARSEINFER_CACHE_DIR"


def directory() -> Path:
    """The user's cache folder for this package."""
    if chosen := os.environ.get(DIRECTORY):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "sparseinfer"
    try:
        return Path.home() / ".cache" / "sparseinfer"
    except RuntimeError:  # a user without a home
        return Path(os.devnull) / "sparseinfer"


def path_for(kind: str, owner: Mapping[str, object], ending: str = ".json") -> Path:
    """The file of this kind that belongs to what `owner` describes."""
    digest = hashlib.sha256(json.dumps(owner, sort_keys=True).encode()).hexdigest()
    return directory() / f"{kind}-{digest[:16]}{ending}"


def read(path: Path) -> Any:
    """What the file holds; None if there is no such file or it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write(path: Path, content: object) -> None:
    """Replaces the file in one step, as other processes read it; does nothing where it cannot be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            try:
                json.dump(content, file, indent=0)
                file.close()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink()
                raise
