"""Reads the weights of a model from files of others: folders, shards, torch's own files, other formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseinfer.io import compressed_tensors
from sparseinfer.io.reader import Contents, File, Held

_INDEX = "model.safetensors.index.json"
# Written by torch.save; read by its unpickler for tensors only.
_TORCH = (".pt", ".pth", ".bin")


def contents_of(path: Path) -> Contents:
    """What a path holds: a safetensors file, a folder of them, or a file of torch.save with a state_dict.

    Of others' files, weights come dense: out of compressed-tensors' sparse formats and torch's sparse
    layouts, and multiplied by the masks of torch.nn.utils.prune. ValueError that names the file: not such a
    file, a shard that is missing, a damaged one. OSError: it cannot be read.
    """
    if path.suffix in _TORCH and path.is_file():
        return Held(path, plain(path, _of_torch(path)))
    file = File(path, _files(path)) if path.is_dir() else File(path)
    if file.is_ours or not _needs_work(file.names):
        return file
    return Held(path, plain(path, {name: file.tensor(name) for name in file.names}))


def holds_sparse(folder: Path) -> bool:
    """Whether a folder has files that only `contents_of` reads: ours, or with sparse weights or masks."""
    try:
        file = File(folder, _files(folder))
    except ValueError:
        return False
    return file.is_ours or _needs_work(file.names)


def plain(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict with dense weights, whatever they are stored as; errors name the path."""
    dense = {name: t.to_dense() if t.layout != torch.strided else t for name, t in tensors.items()}
    try:
        if compressed_tensors.is_compressed(dense.keys()):
            dense = compressed_tensors.decompress(dense)
        for name in [name for name in dense if name.endswith("_orig") and _mask(name) in dense]:
            weight, mask = dense.pop(name), dense.pop(_mask(name))
            if weight.shape != mask.shape:
                raise ValueError(f"{_mask(name)}: expected {list(weight.shape)}, got {list(mask.shape)}")
            dense[name.removesuffix("_orig")] = weight * mask.to(weight.dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dense


def _mask(name: str) -> str:
    return name.removesuffix("_orig") + "_mask"


def _needs_work(names: frozenset[str]) -> bool:
    return compressed_tensors.is_compressed(names) or any(
        name.endswith("_orig") and _mask(name) in names for name in names
    )


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        if len(found) != 1:
            got = f"{len(found)} files and no {_INDEX}"
            raise ValueError(f"{folder}: expected one safetensors file, or shards and their index, got {got}")
        return found
    try:
        names = sorted(set(map(str, json.loads(index.read_text())["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected an index of shards, got {type(error).__name__}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{folder}: expected the shard {name[:200]!r} of its index, got none")
    return [folder / name for name in names]


def _of_torch(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        got = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{path}: expected a state_dict saved by torch, got {got}") from error
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        hint = "save model.state_dict()"
        raise ValueError(f"{path}: expected a state_dict of tensors, got {type(content).__name__} ({hint})")
    return dict(content)
