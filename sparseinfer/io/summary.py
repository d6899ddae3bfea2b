"""What is in the files of a model: formats, zeros and bytes of each weight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from sparseinfer.io.reader import File

_BINS = 10


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    name      in the model's state_dict
    shape, dtype   of the tensor
    format    "dense", or the sparse format that it is stored in
    stored    dtype of the stored values
    sparsity  fraction of zeros; None for what is no weight: fewer than two dimensions, or no floats
    nbytes    in the file
    dense_nbytes   if it were stored dense
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    stored: str
    sparsity: float | None
    nbytes: int
    dense_nbytes: int


@dataclass(frozen=True)
class Summary:
    """All tensors of one file or several, in order.

    model        class of the model, if the file says it
    converted    names of the parts that `convert` made; "" is the whole model
    """

    files: tuple[str, ...]
    model: str
    converted: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @property
    def sparse(self) -> list[Tensor]:
        return [t for t in self.tensors if t.format != "dense"]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    @property
    def dense_nbytes(self) -> int:
        return sum(t.dense_nbytes for t in self.tensors)

    def histogram(self) -> list[int]:
        """Weights with a sparsity in [0, 0.1), [0.1, 0.2), ..., [0.9, 1], by elements."""
        counts = [0] * _BINS
        for t in self.tensors:
            if t.sparsity is not None:
                counts[min(int(t.sparsity * _BINS), _BINS - 1)] += prod(t.shape)
        return counts

    def to_json(self) -> str:
        """A JSON object: the fields, bytes, and the histogram."""
        content: dict[str, Any] = {**asdict(self), "nbytes": self.nbytes, "dense_nbytes": self.dense_nbytes}
        return json.dumps({**content, "histogram": self.histogram()}, indent=2)


def summary_of(path: Path) -> Summary:
    """Of a safetensors file, or of all in a folder. ValueError: there is none, or one is damaged."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: expected a folder with files of safetensors, got none")
    opened = [File(file) for file in files]
    names = dict.fromkeys(file.manifest.model for file in opened if file.manifest.model)
    return Summary(
        tuple(map(str, files)),
        ", ".join(names),
        tuple(prefix for file in opened for prefix in file.manifest.conversions),
        tuple(t for file in opened for t in _tensors(file)),
    )


def _tensors(file: File) -> Sequence[Tensor]:
    found = []
    sparsity: float | None
    for name in (*file.sparse, *file.dense):
        dtype, shape = file.spec(name)
        nbytes = file.stored_bytes(name)
        if name in file.sparse:
            fmt = file.format(name)
            kind, stored, sparsity = (
                file.sparse[name].format,
                _short(fmt.dtype),
                _zeros(int(fmt.values.count_nonzero()), shape),
            )
        else:
            kind, stored = "dense", _short(dtype)
            is_weight = len(shape) >= 2 and dtype.is_floating_point and prod(shape) > 0 and dtype.itemsize > 1
            sparsity = _zeros(int(file.tensor(name).count_nonzero()), shape) if is_weight else None
        found.append(
            Tensor(name, shape, _short(dtype), kind, stored, sparsity, nbytes, prod(shape) * dtype.itemsize)
        )
    return found


def _zeros(nonzero: int, shape: tuple[int, ...]) -> float:
    return 1.0 - nonzero / prod(shape) if prod(shape) else 0.0


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
