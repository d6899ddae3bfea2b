"""Caches measured times on disk, so that the next conversion need not measure again.

One JSON file per machine: CPU, instruction set, threads, versions and the build of the kernels are in its
name's hash and again in the file. Anything unreadable counts as empty, and a directory that cannot be written
means that nothing is cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from sparseinfer import _cache_files, ops
from sparseinfer._machine import cpu_model
from sparseinfer._native import build_of, core, cuda_module


class Verdicts:
    """Cached microseconds by key and by candidate; every `put` writes to disk."""

    def __init__(self) -> None:
        self._machine = _machine(torch.get_num_threads(), ops.active_isa())
        self._path = _cache_files.path_for("times", self._machine)
        self._times = _read(self._path)

    def get(self, key: tuple[object, ...], names: tuple[str, ...]) -> dict[str, float] | None:
        """The cached times; None unless all of these candidates were timed together."""
        times = self._times.get(_text(key))
        return {name: times[name] for name in names} if times and set(names) <= set(times) else None

    def put(self, key: tuple[object, ...], times: Mapping[str, float]) -> None:
        # Another process may have written meanwhile; the newest file wins, key by key.
        self._times = {**_read(self._path), **self._times, _text(key): dict(times)}
        _cache_files.write(self._path, {"machine": self._machine, "us": self._times})


@cache
def _machine(threads: int, isa: str) -> dict[str, object]:
    return {
        "cpu": cpu_model(),
        "isa": isa,
        "threads": threads,
        "torch": torch.__version__,
        "sparseinfer": core.__version__,
        "build": [build_of(module) for module in (core, cuda_module()) if module is not None],
    }


def _text(key: tuple[object, ...]) -> str:
    return " ".join(map(str, key))


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        times = _cache_files.read(path)["us"]
        return {
            str(key): {str(name): float(us) for name, us in by_name.items()} for key, by_name in times.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
