"""`si.load`: a model from a file of `si.save`, or from a file of others with its state_dict."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from sparseinfer import _packages
from sparseinfer.convert.record import Record, from_json
from sparseinfer.convert.reload import Planning, check_fits, reload_
from sparseinfer.formats import CSR
from sparseinfer.io.fill import Filling
from sparseinfer.io.others import contents_of
from sparseinfer.io.reader import Contents


def load(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    plan: Planning = "stored",
) -> nn.Module:
    """The saved model: its weights and, if it was converted, what `convert` made of it, without running it.

    path    a file of `save`; any other safetensors file, or a folder of one or of shards; a state_dict of
            torch.save (.pt, .pth, .bin). Weights in compressed-tensors' sparse-bitmask and
            sparse-24-bitmask, with masks of torch.nn.utils.prune, or of torch's sparse layouts become dense
    model   a dense model of the same class, which is filled in place; or a function that makes one. The
            function is called where tensors have no data, and again, in earnest, if the model cannot be
            made like that. Not needed for a folder of transformers, whose config says it
    plan    of a converted model: "stored", what `convert` decided, with equal results; what this machine
            has no kernels for is planned anew by predicted times. "predict" and "measure": all is planned
            anew, for the same calls, by predicted or measured times

    Tensors that are stored as they are lie in the mapped file, which processes share, until they are written
    to. Weights of converted layers are read one after another; packings are memory of this process. The model
    is in eval mode if it was saved in it.

    ValueError that names file, tensor, what was expected and what is there: not such a file, a damaged one,
    one of a newer version, or of another model. The model is unchanged then.
    """
    if plan not in get_args(Planning):
        raise ValueError(f"plan: expected one of {', '.join(get_args(Planning))}, got {plan!r}")
    if model is None:
        return _of_transformers(Path(path))
    file = contents_of(Path(path))
    if isinstance(model, nn.Module):
        return filled(file, model, plan)
    if not callable(model):
        raise TypeError(
            f"model: expected a torch.nn.Module or a function that makes one, got {type(model).__name__}"
        )
    made = _without_data(file, model)
    return filled(file, _checked(model()) if made is None else made, plan)


def _of_transformers(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise ValueError(f"model: expected a module or a function that makes one for {folder}, got None")
    _packages.transformers("load", "demo")
    from sparseinfer.io import hf

    return hf.from_folder(folder)


def _without_data(file: Contents, factory: Callable[[], nn.Module]) -> nn.Module | None:
    """The factory's model on meta, if the file has all that it lacks."""
    try:
        with torch.device("meta"):
            made = factory()
    except Exception:
        return None  # its own errors come again in earnest
    return None if Filling(file, _checked(made)).missing_on_meta() else made


def _checked(made: object) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise TypeError(f"model: expected a function that makes a torch.nn.Module, got {type(made).__name__}")
    return made


def filled(file: Contents, model: nn.Module, plan: Planning) -> nn.Module:
    """The dense model with these tensors, in place, converted as the manifest says; errors as in `load`."""
    filling = Filling(file, model)
    filling.check()
    records = _records(file, model)
    planned = [f"{prefix}.{fqn}".strip(".") for prefix, record in records for fqn in record.layers]

    def lazy(key: str) -> bool:
        owner = key.rpartition(".")[0]
        inside = any(owner == fqn or owner.startswith(f"{fqn}.") for fqn in planned)
        return plan == "stored" and inside and key in file.sparse

    training = {module: module.training for module in model.modules()}
    try:
        if file.is_ours and not file.manifest.training:
            model.eval()
        filling.put(lazy)
        for prefix, record in records:
            try:
                model = _converted(model, prefix, record, plan, filling)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file.path}: {prefix or 'model'}: {error}") from error
        filling.finish()
    except BaseException:
        filling.undo()
        for module, mode in training.items():
            module.training = mode
        raise
    return model


def _records(file: Contents, model: nn.Module) -> list[tuple[str, Record]]:
    """The conversions in the file, each with the name of the part that was converted, in order."""
    records = []
    for prefix, content in file.manifest.conversions.items():
        try:
            part = model.get_submodule(prefix)
            for one in content:
                record = from_json(one)
                check_fits(part, record)
                records.append((prefix, record))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{file.path}: {prefix or 'model'}: {error}") from None
    return records


class _Under:
    """The weights of a part of the model, by their names in it."""

    def __init__(self, filling: Filling, prefix: str) -> None:
        self._filling, self._prefix = filling, prefix

    def _name(self, layer: str) -> str:
        return f"{self._prefix}.{layer}".strip(".")

    def csr(self, layer: str) -> CSR | None:
        return self._filling.csr(self._name(layer))

    def held(self, layers: Sequence[str]) -> AbstractContextManager[None]:
        return self._filling.held([self._name(layer) for layer in layers])

    def forget(self, layers: Sequence[str]) -> None:
        self._filling.forget([self._name(layer) for layer in layers])

    def keep(self, layer: str) -> None:
        self._filling.keep(self._name(layer))


def _converted(model: nn.Module, prefix: str, record: Record, plan: Planning, filling: Filling) -> nn.Module:
    part = model.get_submodule(prefix)
    new = reload_(part, record, plan, _Under(filling, prefix))
    if new is part:
        return model
    parent, _, name = prefix.rpartition(".")
    if not prefix:
        return new
    setattr(model.get_submodule(parent), name, new)
    return model
