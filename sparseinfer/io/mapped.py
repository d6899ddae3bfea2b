"""A safetensors file mapped into memory: its header, checked against the file, and its tensors."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.io.header import parse_header


class Mapped:
    """Tensors lie in the file's pages. ValueError names the file: it is damaged, or another kind of file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.nbytes = os.fstat(file.fileno()).st_size
            if not self.nbytes:
                raise ValueError(f"{path}: expected a safetensors file, got an empty one")
            self.identity = identity_of(file.fileno())
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        try:
            header = parse_header(memoryview(self._map))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
        self._start, self.entries, self.metadata = header.start, header.entries, header.metadata

    @property
    def header(self) -> memoryview:
        """The bytes before those of the tensors."""
        return memoryview(self._map)[: self._start]

    def tensor(self, name: str) -> Tensor:
        entry = self.entries[name]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        flat = torch.frombuffer(
            self._map, dtype=torch.uint8, count=entry.nbytes, offset=self._start + entry.begin
        )
        if flat.data_ptr() % entry.dtype.itemsize:
            flat = flat.clone()  # of a file of others, who need not align anything
        return flat.view(entry.dtype).view(entry.shape)

    @property
    def is_unchanged(self) -> bool:
        """Whether the path still names the file that is mapped, and nobody wrote to it."""
        try:
            return identity_of(self.path) == self.identity
        except OSError:
            return False

    def forget(self, name: str) -> None:
        """Let the tensor's pages go; they can be read again."""
        entry = self.entries[name]
        begin = -(-(self._start + entry.begin) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self._start + entry.end) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def identity_of(file: Path | int) -> tuple[int, ...]:
    """What changes when a file is replaced or written to: device, inode, bytes, and times in nanoseconds.

    The last is the time of the last change, which programs cannot set.
    """
    status = os.fstat(file) if isinstance(file, int) else file.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
