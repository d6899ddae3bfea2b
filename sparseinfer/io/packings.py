"""Packings of the weights of a file, kept in the user's cache folder for the next load of the same file.

A safetensors file of uint8 tensors for each file of a model and each machine. It is used if it belongs to the
very file that is loaded (`Mapped.identity`, and its header, which says how everything was packed), to this
instruction set and to this build of the kernels; every packing is checked as a whole before a kernel reads
it. What is damaged, or cannot be read, is made anew. Processes share the pages of what they map.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseinfer import _cache_files, ops
from sparseinfer._native import build_of, core
from sparseinfer.io.mapped import Mapped
from sparseinfer.io.writer import write_tensors

# Megabytes that the files may take together; 0: none are written or read.
LIMIT = "SPARSEINFER_PACKINGS_MB"
_DEFAULT_MB = 8192
_KIND, _ENDING = "packings", ".safetensors"
_OWNER = "owner"
# What was written to less than so many seconds ago may be written to again without a sign of it: the times of
# some file systems are as coarse as that.
_SETTLED_S = 2.0
# Left behind by a process that was killed while it wrote.
_ABANDONED_S = 3600.0


class Packings:
    """The packings of a file (or of shards), by key: what an earlier load kept, and what this one makes."""

    def __init__(self, files: Sequence[Mapped]) -> None:
        self._files = files
        self._limit = _limit_bytes()
        self._owner = _owner(files)
        self._path = _cache_files.path_for(_KIND, self._owner, _ENDING)
        self._known = _read(self._path, self._owner) if self._limit else {}
        self._made: dict[str, Tensor] = {}

    def get(self, key: str) -> list[Tensor]:
        """The packings that were kept under this key, in order, checked; [] if there are none."""
        found: list[Tensor] = []
        while (name := f"{key} {len(found)}") in self._known:
            found.append(self._known[name])
        return found

    def put(self, key: str, packings: Sequence[Tensor]) -> None:
        """Keep them at the next `store`, unless there are some already; they are not copied."""
        if self._limit and not self._known:
            self._made |= {f"{key} {i}": packed for i, packed in enumerate(packings)}

    def store(self) -> None:
        """Write what was put; nothing where it does not fit, cannot be written, or the files have changed."""
        nbytes = sum(packed.nbytes for packed in self._made.values())
        if self._made and nbytes <= self._limit and all(map(_is_settled, self._files)):
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _make_room(self._limit - nbytes)
                write_tensors(self._path, self._made.items(), {_OWNER: json.dumps(self._owner)})
        self._made = {}


def _limit_bytes() -> int:
    text = os.environ.get(LIMIT, str(_DEFAULT_MB))
    if not text.isdecimal():
        raise ValueError(f"{LIMIT}: expected a number of megabytes, got {text!r} (0: no packings are kept)")
    return int(text) << 20


def _owner(files: Sequence[Mapped]) -> dict[str, Any]:
    """What packings depend on, as plain JSON."""
    return {
        "files": [[*file.identity, hashlib.sha256(file.header).hexdigest()] for file in files],
        "isa": ops.active_isa(),
        "machine": platform.machine(),
        "sparseinfer": core.__version__,
        "build": build_of(core),
    }


def _read(path: Path, owner: dict[str, Any]) -> dict[str, Tensor]:
    """The checked packings of a file; {} if there is none, or a damaged one."""
    try:
        # A tensor that is made in inference mode could not be told apart from a changed one.
        with torch.inference_mode(False):
            mapped = Mapped(path)
            found = {name: mapped.tensor(name) for name in mapped.entries}
        if json.loads(mapped.metadata.get(_OWNER, "null")) != owner:
            return {}
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(ops.check_packing, found.values()))
        os.utime(path)  # the last that `_make_room` removes is the one that was used last
    except (OSError, ValueError, RecursionError):
        return {}
    return found


def _is_settled(file: Mapped) -> bool:
    return file.is_unchanged and time.time() - file.identity[-1] / 1e9 > _SETTLED_S


def _make_room(allowed: int) -> None:
    """Remove files, those first that were not used for longest, until they take at most so many bytes."""
    folder, now = _cache_files.directory(), time.time()
    for path in folder.glob(f".{_KIND}-*.tmp"):
        if now - path.stat().st_mtime > _ABANDONED_S:
            path.unlink()
    found = sorted(
        (path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob(f"{_KIND}-*{_ENDING}")
    )
    left = sum(size for _, size, _ in found)
    for _, size, path in found:
        if left > allowed:
            path.unlink()
            left -= size
