"""Stores the weights of a file in the smallest formats, without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sparseinfer._progress import Progress
from sparseinfer.io.reader import File
from sparseinfer.io.smallest import AnyFormat, compressed, described
from sparseinfer.io.writer import write


def compress_file(source: Path, target: Path) -> None:
    """Write the tensors of a safetensors file to another, each weight in its smallest format.

    ValueError: a damaged file. OSError: one that cannot be read or written; then nothing is written.
    """
    file = File(source)
    formats: dict[str, AnyFormat] = {name: file.format(name) for name in file.sparse}
    sparse, tensors = dict(file.sparse), {}
    with Progress("compressing", len(file.dense)) as progress:
        for name in file.dense:
            tensor = file.tensor(name)
            fmt = None if name in file.manifest.derived else compressed(tensor)
            if fmt is None:
                tensors[name] = tensor
            else:
                formats[name], sparse[name] = fmt, described(fmt, tensor)
            progress.advance()
    write(target, tensors, formats, replace(file.manifest, sparse=sparse))
