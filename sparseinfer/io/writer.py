"""Writes the file of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseinfer.io.atomic import replacing
from sparseinfer.io.header import DTYPE_NAMES, PADDING, header_bytes, padding_after
from sparseinfer.io.manifest import KEY, Manifest
from sparseinfer.io.smallest import AnyFormat


def write(
    path: Path, tensors: Mapping[str, Tensor], formats: Mapping[str, AnyFormat], manifest: Manifest
) -> None:
    """Write tensors as they are, and weights in formats, which the manifest describes, or leave all as it
    was.

    OSError that says so: the file cannot be written, for example because the disk is full.
    """
    # `format` is what other readers of safetensors ask for.
    write_tensors(path, _named(tensors, formats, manifest), {"format": "pt", KEY: manifest.to_text()})


def write_tensors(path: Path, named: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of these, or leave all as it was; OSError as in `write`."""
    # What is not a multiple of the alignment comes last, with as few paddings as possible.
    flat = sorted(named, key=lambda item: padding_after(item[1].nbytes) > 0)
    head = header_bytes([(name, t.dtype, tuple(t.shape)) for name, t in flat], metadata)
    with replacing(path) as file:
        file.write(head)
        for _, t in flat:
            file.write(_bytes(t))
            file.write(bytes(padding_after(t.nbytes)))


def storable(name: str, t: object) -> Tensor:
    """A tensor that the file can hold. TypeError, ValueError: it cannot."""
    if not isinstance(t, Tensor):
        hint = "pickle is not used: keep it in get_extra_state as plain JSON"
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__} ({hint})")
    if t.is_meta:
        raise ValueError(f"{name}: expected a tensor with data, got a meta tensor (load the model first)")
    known = type(t) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if not known or t.layout != torch.strided or t.dtype not in DTYPE_NAMES:
        got = f"{type(t).__name__} of {t.dtype}, {t.layout}"
        raise TypeError(f"{name}: expected a plain dense tensor of a dtype of safetensors, got {got}")
    if name.startswith((PADDING, "__metadata__")):
        raise ValueError(f"{name}: expected another name (files of safetensors use this one)")
    return t.detach().resolve_neg().cpu()


def _named(
    tensors: Mapping[str, Tensor], formats: Mapping[str, AnyFormat], manifest: Manifest
) -> Iterator[tuple[str, Tensor]]:
    for name, t in tensors.items():
        yield name, t
    for name, fmt in formats.items():
        parts = fmt.parts()
        for part in manifest.sparse[name].parts:
            if f"{name}.{part}" in tensors:
                raise ValueError(
                    f"{name}.{part}: expected no tensor of that name beside a sparse {name}, got one"
                )
            yield f"{name}.{part}", parts[part]


def _bytes(t: Tensor) -> memoryview:
    if not t.numel():
        return memoryview(b"")
    flat: Any = t.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
