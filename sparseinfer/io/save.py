"""`si.save`: one file with the weights of a model, and with what `convert` decided of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from sparseinfer._progress import Progress
from sparseinfer.convert.assembly.assemble import is_replacement
from sparseinfer.convert.record import Record, recorded, to_json
from sparseinfer.convert.survey.chains import base_class
from sparseinfer.io.manifest import Manifest
from sparseinfer.io.state import State, state_of
from sparseinfer.io.writer import write
from sparseinfer.prune.structured.structure import structure_of


def save(model: nn.Module, path: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Write a model, converted, pruned or dense, to a safetensors file that `load` reads; returns the path.

    Each weight is stored in the smallest of the formats bitmap, csr, bsr and nm, or as it is; further names
    of shared tensors, buffers (those that state_dict leaves out, too) and extra states as well. A converted
    model is stored as the dense model that it was made from, with the weights that it computes with
    (rounded, if `convert` rounded them), and with the decisions of `convert`; packings belong to a machine
    and are made anew. Masks of pruning are applied and left out. Negative zeros become positive in weights
    that get smaller.

    The file takes the place of an old one at the end, or not at all. Nothing is pickled. TypeError,
    ValueError: something that a file of tensors and JSON cannot hold, by its name. OSError: it cannot be
    written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    path = Path(path)
    layers = {module for module in model.modules() if is_replacement(module)}
    with Progress("reading layers", len(layers) or None, shown=progress) as bar:
        state = state_of(model, bar.advance)
        manifest = manifest_of(model, state)
        bar.describe("writing")
        write(path, state.tensors, state.formats, manifest)
    return path


def manifest_of(model: nn.Module, state: State) -> Manifest:
    """What the file says of a model with this state."""
    return Manifest(
        model=base_class(model).__name__,
        training=model.training,
        sparse=state.sparse,
        aliases=state.aliases,
        derived=tuple(state.derived),
        channels_last=tuple(state.channels_last),
        extra=state.extra,
        conversions={fqn: list(map(to_json, records)) for fqn, records in _records(model).items()},
        structure=structure_of(model),
    )


def _records(model: nn.Module) -> dict[str, Sequence[Record]]:
    """The conversions of the model and of parts of it, the outermost of each part."""
    records: dict[str, Sequence[Record]] = {}
    for fqn, module in model.named_modules():
        inside = any(not outer or fqn.startswith(f"{outer}.") for outer in records)
        if not inside and recorded(module):
            records[fqn] = recorded(module)
    return records
