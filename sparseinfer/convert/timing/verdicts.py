"""Caches measured times on disk, so that the next conversion need not measure again.

One JSON file per machine: CPU, instruction set, threads, versions and the build of the kernels are in its
name's hash and again in the file. Anything unreadable counts as empty, and a directory that cannot be written
means that nothing is cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from sparseinfer import ops
from sparseinfer._machine import cpu_model
from sparseinfer._native import core, cuda_module

# Set to a directory to keep the file there instead of the user's cache folder.
DIRECTORY = "SPARSEINFER_CACHE_DIR"


class Verdicts:
    """Cached microseconds by key and by candidate; every `put` writes to disk."""

    def __init__(self) -> None:
        self._machine = _machine(torch.get_num_threads(), ops.active_isa())
        digest = hashlib.sha256(json.dumps(self._machine, sort_keys=True).encode()).hexdigest()
        self._path = directory() / f"times-{digest[:16]}.json"
        self._times = _read(self._path)

    def get(self, key: tuple[object, ...], names: tuple[str, ...]) -> dict[str, float] | None:
        """The cached times; None unless all of these candidates were timed together."""
        times = self._times.get(_text(key))
        return {name: times[name] for name in names} if times and set(names) <= set(times) else None

    def put(self, key: tuple[object, ...], times: Mapping[str, float]) -> None:
        # Another process may have written meanwhile; the newest file wins, key by key.
        self._times = {**_read(self._path), **self._times, _text(key): dict(times)}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                try:
                    json.dump({"machine": self._machine, "us": self._times}, file, indent=0)
                    file.close()
                    Path(file.name).replace(self._path)
                except OSError:
                    Path(file.name).unlink()
                    raise


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


@cache
def _machine(threads: int, isa: str) -> dict[str, object]:
    files = [module.__file__ for module in (core, cuda_module()) if module is not None]
    binaries = [Path(file).stat() for file in files if file is not None]
    return {
        "cpu": cpu_model(),
        "isa": isa,
        "threads": threads,
        "torch": torch.__version__,
        "sparseinfer": core.__version__,
        "build": [[binary.st_size, binary.st_mtime_ns] for binary in binaries],
    }


def _text(key: tuple[object, ...]) -> str:
    return " ".join(map(str, key))


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        times = json.loads(path.read_text(encoding="utf-8"))["us"]
        return {
            str(key): {str(name): float(us) for name, us in by_name.items()} for key, by_name in times.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
