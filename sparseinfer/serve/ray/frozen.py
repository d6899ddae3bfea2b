"""Objects that hold tensors, as a pickle and arrays beside it, which Ray maps instead of copying.

Sparse layers are held by their packings, so that nobody packs again, in memory of his own.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray import cloudpickle
from torch import UntypedStorage
from torch.storage import TypedStorage

from sparseinfer.modules.packed import packings_pickled

_ALIGNED = 64  # as torch allocates


@dataclass(frozen=True)
class Frozen:
    """pickled   the object without the memory of its tensors
    arrays    that memory, uint8, each storage once; Ray gives every process of a node the same pages
    """

    pickled: bytes
    arrays: tuple[np.ndarray[Any, np.dtype[np.uint8]], ...]

    @property
    def nbytes(self) -> int:
        return len(self.pickled) + sum(array.nbytes for array in self.arrays)


def freeze(value: object) -> Frozen:
    """Tensors that share memory share it again in what `thaw` returns. ValueError: a tensor on a GPU."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    with packings_pickled():
        pickler.dump(value)
    return Frozen(file.getvalue(), tuple(map(_bytes_of, pickler.storages)))


def thaw(frozen: Frozen) -> Any:
    """The object, its tensors in the memory of the arrays: read-only for all who share it."""
    return _Unpickler(frozen).load()


class _Pickler(cloudpickle.CloudPickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.storages: list[UntypedStorage] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: object) -> tuple[int, torch.dtype] | None:
        """Of a tensor's storage, as torch pickles it: its number and dtype."""
        if isinstance(value, TypedStorage):
            storage, dtype = value._untyped_storage, value.dtype
        elif isinstance(value, UntypedStorage):
            storage, dtype = value, torch.uint8
        else:
            return None
        if storage.device.type != "cpu":
            raise ValueError(f"tensor: expected one in CPU memory, got one on {storage.device}")
        number = self._numbers.setdefault(storage._cdata, len(self.storages))
        if number == len(self.storages):
            self.storages.append(storage)
        return number, dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, frozen: Frozen) -> None:
        super().__init__(io.BytesIO(frozen.pickled))
        self._storages = [_storage_of(array) for array in frozen.arrays]

    def persistent_load(self, number_and_dtype: tuple[int, torch.dtype]) -> TypedStorage:
        number, dtype = number_and_dtype
        return TypedStorage(wrap_storage=self._storages[number], dtype=dtype, _internal=True)


def _bytes_of(storage: UntypedStorage) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()


def _storage_of(array: np.ndarray[Any, np.dtype[np.uint8]]) -> UntypedStorage:
    if not array.size:
        return UntypedStorage(0)
    with warnings.catch_warnings():
        # That torch does not know memory as read-only; inference writes into no weight.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    # Packings are read where they lie, in whole lines. Ray aligns what it maps, but not what is small.
    return (tensor.clone() if tensor.data_ptr() % _ALIGNED else tensor).untyped_storage()
