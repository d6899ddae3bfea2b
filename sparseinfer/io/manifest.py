"""The manifest: what the header's metadata says of a file beyond names, dtypes and shapes.

It is JSON. The file's tensors are named by `parts`; docs/files.md describes every field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch

from sparseinfer.io.header import DTYPE_NAMES, DTYPES, parse_json
from sparseinfer.prune.structured.structure import Structure, from_json

VERSION = 2
# In the header's metadata.
KEY = "sparseinfer"

# By the name of a format: what it needs besides values, its shape and its scales.
FORMATS = {
    "bitmap": ("mask",),
    "csr": ("crow_indices", "col_indices"),
    "bsr": ("crow_indices", "col_indices"),
}
FORMATS["nm"] = ("positions",)


@dataclass(frozen=True)
class Sparse:
    """A weight in a sparse format.

    format   name of the format
    dtype    of the weight; its values may have a shorter one that holds them exactly, or be int8 with scales
    shape    of the weight; the format's matrix is [shape[0], product of the others]
    pattern  (N, M) of nm
    scales   whether there are scales
    """

    format: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pattern: tuple[int, int] | None = None
    scales: bool = False

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.shape[0], prod(self.shape[1:])

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the format's tensors; in the file they stand behind the weight's name and a dot."""
        return ("values", *FORMATS[self.format], *(("scales",) if self.scales else ()))


@dataclass(frozen=True)
class Manifest:
    """model         the class of the model, for messages
    training      whether the model was in training mode
    sparse        the weights in a sparse format, by their names in the model's state_dict
    aliases       names for tensors that are stored under another name
    derived       names of buffers that are not in the model's state_dict
    channels_last names of tensors whose memory format is channels_last
    extra         extra states by the names of their modules: plain JSON
    conversions   records of `convert`, in order, by the name of the converted module
    structure     what `prune_structured_` removed, as plain JSON; since version 2
    """

    model: str = ""
    training: bool = False
    sparse: Mapping[str, Sparse] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    channels_last: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    conversions: Mapping[str, Any] = field(default_factory=dict)
    structure: Structure = field(default_factory=Structure)

    def to_text(self) -> str:
        content: dict[str, Any] = {"version": VERSION, **vars(self)}
        content["sparse"] = {name: _as_json(sparse) for name, sparse in self.sparse.items()}
        content["structure"] = self.structure.to_json()
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def parse_manifest(text: str, file_bytes: int) -> Manifest:
    """The manifest in this text. ValueError: it is none, or of a newer version."""
    content = parse_json("manifest", text, file_bytes)
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(f"manifest: expected a version from 1, got {str(version)[:80]!r}")
    if version > VERSION:
        hint = "install a newer sparseinfer"
        raise ValueError(f"manifest: expected a version up to {VERSION}, got {version} ({hint})")
    if version == 1:
        content.setdefault("structure", Structure().to_json())
    known = set(Manifest.__dataclass_fields__)
    if set(content) != known | {"version"}:
        raise ValueError(
            f"manifest: expected the fields {', '.join(sorted(known))}, got {str(sorted(content))[:200]}"
        )
    for name, kind in _KINDS.items():
        if not isinstance(content[name], kind):
            raise ValueError(
                f"manifest: expected {name} as {kind.__name__}, got {type(content[name]).__name__}"
            )
    if not all(isinstance(records, list) for records in content["conversions"].values()):
        raise ValueError("manifest: expected a list of records for each conversion, got others")
    names = [*content["aliases"].values(), *content["derived"], *content["channels_last"]]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("manifest: expected names of tensors as texts, got others")
    sparse = {name: _sparse(name, fields) for name, fields in content["sparse"].items()}
    given = {name: content[name] for name in ("model", "training", "aliases", "extra", "conversions")}
    return Manifest(
        sparse=sparse,
        derived=tuple(content["derived"]),
        channels_last=tuple(content["channels_last"]),
        structure=from_json(content["structure"]),
        **given,
    )


_KINDS = {
    "model": str,
    "training": bool,
    "derived": list,
    "channels_last": list,
    **dict.fromkeys(("sparse", "aliases", "extra", "conversions"), dict),
}


def _as_json(sparse: Sparse) -> dict[str, Any]:
    return {**asdict(sparse), "dtype": DTYPE_NAMES[sparse.dtype]}


def _sparse(name: str, fields: Any) -> Sparse:
    if not isinstance(fields, dict) or set(fields) != set(Sparse.__dataclass_fields__):
        raise ValueError(f"{name}: expected a description of a sparse weight, got {str(fields)[:80]}")
    kind, dtype, shape, pattern = (fields[key] for key in ("format", "dtype", "shape", "pattern"))
    if not isinstance(kind, str) or kind not in FORMATS:
        raise ValueError(f"{name}: expected a format of {', '.join(FORMATS)}, got {str(kind)[:80]!r}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name}: expected a dtype, got {str(dtype)[:80]!r}")
    if not _are_sizes(shape) or not 2 <= len(shape) <= 64:
        raise ValueError(f"{name}: expected a shape of two sizes or more, got {str(shape)[:80]}")
    if (pattern is not None) != (kind == "nm") or (
        pattern is not None and not (_are_sizes(pattern) and len(pattern) == 2)
    ):
        raise ValueError(f"{name}: expected a pattern (N, M) for nm only, got {str(pattern)[:80]}")
    if type(fields["scales"]) is not bool:
        raise ValueError(f"{name}: expected scales as true or false, got {str(fields['scales'])[:80]}")
    checked = None if pattern is None else (pattern[0], pattern[1])
    return Sparse(kind, DTYPES[dtype], tuple(shape), checked, fields["scales"])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**31 for size in value)
