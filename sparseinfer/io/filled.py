"""Fills a dense model with the contents of a file, and converts it as the file's manifest says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor, nn

from sparseinfer.convert.record import Record, from_json
from sparseinfer.convert.reload import Planning, check_fits, reload_
from sparseinfer.formats import CSR
from sparseinfer.io.fill import Filling
from sparseinfer.io.packings import Packings
from sparseinfer.io.reader import Contents
from sparseinfer.prune.structured.structure import Structure, build


def filled(file: Contents, model: nn.Module, plan: Planning) -> nn.Module:
    """The dense model with these tensors, in place, of the structure that the manifest says, and converted as
    it says; errors as in `load`.
    """
    back = shaped(file.path, model, file.manifest.structure)
    try:
        return _filled(file, model, plan)
    except BaseException:
        back()
        raise


def shaped(path: Path, model: nn.Module, structure: Structure) -> Callable[[], None]:
    """Give the model a structure; returns what takes it back. ValueError with the path: it does not fit."""
    try:
        return build(model, structure)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _filled(file: Contents, model: nn.Module, plan: Planning) -> nn.Module:
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
        packings = Packings(file.mapped) if file.mapped and records and plan == "stored" else None
        for number, (prefix, record) in enumerate(records):
            under = _Under(filling, prefix, packings, number)
            try:
                model = _converted(model, prefix, record, plan, under)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file.path}: {prefix or 'model'}: {error}") from error
        filling.finish()
        if packings is not None:
            packings.store()
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
    """The weights of a part of the model, by their names in it, and packings of one of its conversions."""

    def __init__(self, filling: Filling, prefix: str, packings: Packings | None, number: int) -> None:
        self._filling, self._prefix = filling, prefix
        self._packings, self._number = packings, number

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

    def packings(self, product: str) -> Sequence[Tensor]:
        return () if self._packings is None else self._packings.get(f"{self._number} {product}")

    def keep_packings(self, product: str, packings: Sequence[Tensor]) -> None:
        if self._packings is not None:
            self._packings.put(f"{self._number} {product}", packings)


def _converted(model: nn.Module, prefix: str, record: Record, plan: Planning, under: _Under) -> nn.Module:
    part = model.get_submodule(prefix)
    new = reload_(part, record, plan, under)
    if new is part:
        return model
    parent, _, name = prefix.rpartition(".")
    if not prefix:
        return new
    setattr(model.get_submodule(parent), name, new)
    return model
