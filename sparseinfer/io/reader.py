"""The contents of a file of `si.save`, or of any safetensors file, checked before they are used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR, NM, Bitmap
from sparseinfer.io.header import Entry
from sparseinfer.io.manifest import KEY, Manifest, Sparse, parse_manifest
from sparseinfer.io.mapped import Mapped
from sparseinfer.io.smallest import AnyFormat

# The values of a sparse weight: its own dtype, a shorter one that holds them, or int8 with scales.
_STORED_IN = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.bfloat16: (torch.bfloat16,),
    torch.float16: (torch.float16,),
}


class Contents:
    """Tensors, and a manifest that says which of them are the parts of sparse weights.

    Making one checks that they agree; making a sparse weight of its parts checks these. ValueError names the
    file, the tensor, what was expected and what is there.

    path     of the file or folder, for messages
    dense    tensors that are stored as they are, by the name in the model's state_dict
    names    all of the model's state_dict, aliases included, and those of derived buffers
    manifest what else is known; of a file of others, nothing
    mapped   the files that hold all of it, as they are; () if that is not known
    """

    mapped: tuple[Mapped, ...] = ()

    def __init__(self, path: Path, entries: Mapping[str, Entry], manifest: Manifest | None) -> None:
        self.path, self._entries = path, entries
        self.is_ours = manifest is not None
        self.manifest = manifest or Manifest()
        self.dense = self._checked()
        self.names = frozenset((*self.dense, *self.manifest.sparse, *self.manifest.aliases))

    def _tensor(self, name: str) -> Tensor:
        """A tensor, or a part of a sparse weight, under the name that it is stored under."""
        raise NotImplementedError

    def forget(self, name: str) -> None:
        """Let go of the memory of a sparse weight's parts, which have been read."""
        raise NotImplementedError

    @property
    def sparse(self) -> Mapping[str, Sparse]:
        return self.manifest.sparse

    def stored_name(self, name: str) -> str:
        """The name under which a tensor is stored."""
        return self.manifest.aliases.get(name, name)

    def spec(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """dtype and shape of a tensor of the model, sparse or dense."""
        held = self.sparse.get(name) or self.dense[name]
        return held.dtype, held.shape

    def stored_bytes(self, name: str) -> int:
        """Bytes that it takes in the file."""
        if name in self.dense:
            return self.dense[name].nbytes
        return sum(self._entries[f"{name}.{part}"].nbytes for part in self.sparse[name].parts)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the model, dense; one that is stored dense is the mapped file itself."""
        if name in self.dense:
            dense = self._tensor(name)
        else:
            sparse = self.sparse[name]
            dense = self.format(name).to_dense().to(sparse.dtype).view(sparse.shape)
        if name in self.manifest.channels_last:
            dense = dense.contiguous(memory_format=torch.channels_last)
        return dense

    def format(self, name: str) -> AnyFormat:
        """A sparse weight [n, k] in its format. ValueError: its tensors are not one."""
        sparse = self.sparse[name]
        parts = {part: self._tensor(f"{name}.{part}") for part in sparse.parts}
        with self._named(name):
            if sparse.format == "bitmap":
                return Bitmap(**parts, shape=sparse.matrix_shape)
            if sparse.format == "nm":
                return NM(**parts, shape=sparse.matrix_shape, pattern=sparse.pattern)  # type: ignore[arg-type]
            return (BSR if sparse.format == "bsr" else CSR)(**parts, shape=sparse.matrix_shape)

    def scales(self, name: str) -> Tensor | None:
        """Those of a sparse weight that is stored as int8, a copy."""
        return self._tensor(f"{name}.scales").clone() if self.sparse[name].scales else None

    def check(self) -> None:
        """Make every sparse weight once, so that its tensors are checked. ValueError as in `format`."""
        for name in self.sparse:
            self.format(name)
            self.forget(name)

    def _checked(self) -> dict[str, Entry]:
        """The tensors that are stored as they are. ValueError: the manifest and the tensors do not agree."""
        dense = dict(self._entries)
        for name, sparse in self.sparse.items():
            parts = {part: dense.pop(f"{name}.{part}", None) for part in sparse.parts}
            if missing := [part for part, entry in parts.items() if entry is None]:
                raise ValueError(f"{name}: expected its {', '.join(missing)}, got none")
            if name in dense:
                raise ValueError(f"{name}: expected it once, got it dense and sparse")
            stored = self._entries[f"{name}.values"].dtype
            allowed = (torch.int8,) if sparse.scales else _STORED_IN.get(sparse.dtype, ())
            if stored not in allowed or (sparse.scales and sparse.dtype not in _STORED_IN):
                expected = " or ".join(map(str, allowed)) or "a weight of a floating-point dtype"
                raise ValueError(f"{name}: expected values of {expected}, got {stored} for {sparse.dtype}")
        known = dense.keys() | self.sparse.keys()
        for name, other in self.manifest.aliases.items():
            if other not in known or name in known:
                raise ValueError(f"{name}: expected another name of a tensor, got {other[:80]!r}")
        for name in self.manifest.derived:
            if name not in dense:
                raise ValueError(f"{name}: expected a tensor that the manifest names, got none")
        for name in self.manifest.channels_last:
            shape = (self.sparse.get(name) or dense[name]).shape if name in known else ()
            if len(shape) != 4:
                raise ValueError(f"{name}: expected a tensor of four dimensions, got {shape}")
        return dense

    @contextmanager
    def _named(self, *names: str) -> Iterator[None]:
        """Errors in the block say which file it is, and which tensor."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise ValueError(": ".join([str(self.path), *names, str(error)])) from error


class File(Contents):
    """A safetensors file or its shards, read lazily: tensors lie in the mapped files until written to.

    A tensor that is changed becomes a copy of this process; the file itself never changes. Do not write into
    the file either, but replace it: who has it mapped sees what is written.
    """

    def __init__(self, path: str | os.PathLike[str], shards: Sequence[Path] = ()) -> None:
        """shards: what lies in the folder `path`; their manifest is that of the whole, the same in each."""
        self.path = Path(path)
        self.mapped = maps = tuple(Mapped(shard) for shard in shards or (self.path,))
        self.nbytes = sum(mapped.nbytes for mapped in maps)
        self._owners: dict[str, Mapped] = {}
        entries: dict[str, Entry] = {}
        for mapped in maps:
            if twice := entries.keys() & mapped.entries.keys():
                raise ValueError(f"{mapped.path}: {min(twice)}: expected it in one shard, got it in two")
            entries |= mapped.entries
            self._owners |= dict.fromkeys(mapped.entries, mapped)
        with self._named():
            text = maps[0].metadata.get(KEY)
            manifest = None if text is None else parse_manifest(text, self.nbytes)
            super().__init__(self.path, entries, manifest)

    def forget(self, name: str) -> None:
        """Let the pages of a sparse weight's tensors go, which have been read; they can be read again."""
        for part in self.sparse[name].parts:
            self._owners[f"{name}.{part}"].forget(f"{name}.{part}")

    def _tensor(self, name: str) -> Tensor:
        return self._owners[name].tensor(name)


class Held(Contents):
    """Tensors that are in memory already, read from wherever; the dict is used up."""

    def __init__(
        self,
        path: Path,
        tensors: dict[str, Tensor],
        manifest: Manifest | None = None,
        mapped: tuple[Mapped, ...] = (),
    ) -> None:
        self._tensors, self.mapped = tensors, mapped
        entries = {name: Entry(t.dtype, tuple(t.shape), 0, t.nbytes) for name, t in tensors.items()}
        self.path = path
        with self._named():
            super().__init__(path, entries, manifest)

    def _tensor(self, name: str) -> Tensor:
        t = self._tensors[name]
        if t.is_meta:
            raise ValueError(f"{self.path}: {name}: expected it, got none")
        return t

    def check(self) -> None:
        for name in self.sparse:
            self.format(name)

    def forget(self, name: str) -> None:
        for part in self.sparse[name].parts:
            self._tensors.pop(f"{name}.{part}", None)
