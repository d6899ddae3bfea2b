"""Replaces a file by a new one, or not at all: whoever reads it sees the whole old or the whole new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of `path`, which takes its place at the end of the block.

    After an error, and after a crash at any moment, what was there is unchanged; only a crash leaves the new
    file behind, a hidden one with the ending ".tmp". OSError names the path, and says that the file is whole.
    """
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with new.open("xb") as file:
            with contextlib.suppress(FileNotFoundError):
                new.chmod(target.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink()
        if isinstance(error, OSError):
            raise _told(error, path, target) from error
        raise
    _sync(target.parent)


def _told(error: OSError, path: Path, target: Path) -> OSError:
    state = "the file that was there is unchanged" if target.exists() else "there is no file"
    return OSError(error.errno, f"{path}: expected to write it, got: {error.strerror} ({state})")


def _sync(folder: Path) -> None:
    """Make the new name last; not every system lets a folder be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
