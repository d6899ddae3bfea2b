"""Puts the tensors of a file into a model: all checked before the first is put, all taken back after an
error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._int8 import buffer_names, scale_name
from sparseinfer.convert.assembly.assemble import is_replacement
from sparseinfer.formats import CSR
from sparseinfer.io.reader import Contents
from sparseinfer.io.state import EXTRA

# Types of attributes that hold no tensor; the others if they hold nothing.
_PLAIN = {bool, int, float, str, type(None)}
_CONTAINERS = {dict, OrderedDict, list, tuple, set}


@dataclass(frozen=True)
class Slot:
    """A place for a tensor: an entry of a module's parameters or buffers, and what was there at first."""

    registry: dict[str, Any]
    name: str
    persistent: bool
    old: Tensor

    @property
    def held(self) -> Tensor:
        held: Tensor = self.registry[self.name]
        return held


class Filling:
    """The tensors of a file, and their places in a model."""

    def __init__(self, file: Contents, model: nn.Module) -> None:
        self._file, self._model = file, model
        self._undo: list[Callable[[], None]] = []
        self._slots = dict(_slots(model))
        self._extra = _extra_modules(model)
        # One new parameter for each old one, under all its names.
        self._new: dict[int, tuple[Tensor, Tensor]] = {}
        self._given: set[str] = set()
        self._names: dict[int, list[str]] = {}
        for key, slot in self._slots.items():
            self._names.setdefault(id(slot.old), []).append(key)

    def check(self) -> None:
        """ValueError that names the file and the tensor, unless file and model fit; nothing is changed."""
        file = self._file
        if any(is_replacement(module) for module in self._model.modules()):
            hint = "densify_ it first"
            got = f"model: expected a dense model, got one with converted layers ({hint})"
            raise ValueError(f"{file.path}: {got}")
        have, derived = set(file.names), set(file.manifest.derived)
        for key, slot in self._slots.items():
            names = [name for name in self._names[id(slot.old)] if name in have]
            if not names and slot.persistent:
                raise ValueError(f"{self._where(key)}: expected it in the file, got none{self._whose()}")
            if key in have and (slot.persistent or key not in derived):
                self._check_fits(key, slot)
            if len(names) > 1:
                self._check_same(names)
        for key in sorted(have - derived - self._slots.keys() - self._extra.keys()):
            raise ValueError(
                f"{self._where(key)}: expected a tensor of the model, got another{self._whose()}"
            )
        for key in sorted(file.manifest.extra.keys() ^ {key for key in self._extra if key not in have}):
            got = "none in the model" if key in file.manifest.extra else "none in the file"
            raise ValueError(f"{self._where(key)}: expected an extra state, got {got}{self._whose()}")
        file.check()

    def missing_on_meta(self) -> bool:
        """Whether the model was built without data that the file does not have either."""
        have = {key for key, slot in self._slots.items() if self._fits(key, slot)}
        held = {id(slot.old) for key, slot in self._slots.items() if key in have}
        strays = [t for module in self._model.modules() for t in _tensors(vars(module)) if t.is_meta]
        return any(id(t) not in held for t in strays)

    def put(self, lazy: Callable[[str], bool]) -> None:
        """Put every tensor into its place; a weight for which `lazy` is true comes later, and is on meta."""
        self._put_scales()
        for key, slot in self._slots.items():
            name = self._name_in_file(key, slot.old)
            if name is not None and (slot.persistent or self._fits(key, slot)):
                alone = len(self._names[id(slot.old)]) == 1
                later = alone and slot.old.device.type in ("cpu", "meta") and lazy(key)
                self._put(slot, self._fresh(name, slot.old, lazy=later))
        for key, module in self._extra.items():
            state = self._file.manifest.extra.get(key)
            before: Any = module.get_extra_state()
            self._undo.append(lambda module=module, before=before: module.set_extra_state(before))  # type: ignore[misc]
            module.set_extra_state(self._file.tensor(key) if key in self._file.names else state)

    def _put_scales(self) -> None:
        """The buffers that `quantize_` had left, of which a new model has none."""
        file = self._file
        found = {scale_name(name): file.scales(name) for name in file.sparse if name in self._slots}
        modules = dict(self._model.named_modules(remove_duplicate=False))
        for key in quantization_buffers(file.manifest.derived, modules):
            found.setdefault(key, file.tensor(key))
        for key, buffer in found.items():
            owner, _, name = key.rpartition(".")
            module = modules[owner]
            if buffer is None or (key in file.names and key in self._slots):
                continue
            if key in self._slots:
                self._put(self._slots[key], buffer)
            elif not hasattr(module, name):
                device = next(iter(module.parameters())).device
                module.register_buffer(name, buffer.to("cpu" if device.type == "meta" else device), False)
                self._undo.append(lambda module=module, name=name: delattr(module, name))  # type: ignore[misc]

    def undo(self) -> None:
        """Take everything back."""
        while self._undo:
            self._undo.pop()()

    def csr(self, layer: str) -> CSR | None:
        key = f"{layer}.weight" if layer else "weight"
        if key not in self._file.sparse or not self._slots[key].held.is_meta:
            return None
        fmt = self._file.format(key)
        if isinstance(fmt, CSR):
            return fmt
        return fmt.to_csr() if hasattr(fmt, "to_csr") else CSR.from_dense(fmt.to_dense())

    def keep(self, layer: str) -> None:
        for key, slot in self._inside(layer):
            if slot.held.is_meta:
                self._put(slot, self._fresh(key, slot.held, lazy=False))

    @contextmanager
    def held(self, layers: Sequence[str]) -> Iterator[None]:
        meta = [
            (key, slot, slot.held)
            for layer in layers
            for key, slot in self._inside(layer)
            if slot.held.is_meta
        ]
        try:
            for key, slot, placeholder in meta:
                slot.registry[slot.name] = self._read(key, placeholder)
            yield
        finally:
            for _, slot, placeholder in meta:
                slot.registry[slot.name] = placeholder
            self.forget(layers)

    def forget(self, layers: Sequence[str]) -> None:
        for layer in layers:
            for key, _ in self._inside(layer):
                if key in self._file.sparse:
                    self._file.forget(key)

    def finish(self) -> None:
        """Give what is left on meta its weights."""
        for key, slot in _slots(self._model):
            if slot.held.is_meta and key in self._file.names:
                slot.registry[slot.name] = self._fresh(key, slot.held, lazy=False)

    def _inside(self, layer: str) -> list[tuple[str, Slot]]:
        return [(key, slot) for key, slot in self._slots.items() if not layer or key.startswith(f"{layer}.")]

    def _put(self, slot: Slot, new: Tensor) -> None:
        registry, name, old = slot.registry, slot.name, slot.held

        def back() -> None:
            registry[name] = old

        self._undo.append(back)
        registry[name] = new

    def _fresh(self, name: str, old: Tensor, *, lazy: bool) -> Tensor:
        """What takes the place of `old`."""
        known = self._new.get(id(old))
        if known is not None and known[0] is old and (lazy or not known[1].is_meta):
            return known[1]
        new = self._placeholder(name, old) if lazy else self._read(name, old)
        stored = self._file.stored_name(name)
        if stored in self._given and not lazy:
            new.data = new.data.clone()  # the model has two tensors of what the file has one
        if not lazy:
            self._given.add(stored)
        self._new[id(old)] = (old, new)
        return new

    def _read(self, name: str, old: Tensor) -> Tensor:
        stored = self._file.stored_name(name)
        new = self._file.tensor(stored)
        if stored in self._file.sparse:
            self._file.forget(stored)
        return _like(old, new.to("cpu" if old.is_meta else old.device))

    def _placeholder(self, name: str, old: Tensor) -> Tensor:
        file, stored = self._file, self._file.stored_name(name)
        dtype, shape = file.spec(stored)
        last = stored in file.manifest.channels_last
        memory_format = torch.channels_last if last else torch.contiguous_format
        return _like(old, torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format))

    def _name_in_file(self, key: str, held: Tensor) -> str | None:
        """One of the names of a tensor of the model under which the file has it."""
        names = [key, *self._names.get(id(held), [])]
        return next((name for name in names if name in self._file.names), None)

    def _fits(self, key: str, slot: Slot) -> bool:
        file = self._file
        name = self._name_in_file(key, slot.old)
        if name is None:
            return False
        dtype, shape = file.spec(file.stored_name(name))
        # A buffer that state_dict leaves out follows the model that was saved, which may have been cast.
        follows = not slot.persistent and name in file.manifest.derived
        return shape == tuple(slot.old.shape) and (dtype == slot.old.dtype or follows)

    def _check_fits(self, key: str, slot: Slot) -> None:
        dtype, shape = self._file.spec(self._file.stored_name(key))
        expected = f"{slot.old.dtype} {tuple(slot.old.shape)}"
        if (dtype, shape) != (slot.old.dtype, tuple(slot.old.shape)):
            raise ValueError(f"{self._where(key)}: expected {expected}, got {dtype} {shape}{self._whose()}")
        if type(slot.old) not in (Tensor, nn.Parameter, nn.Buffer):
            raise ValueError(
                f"{self._where(key)}: expected a plain tensor in the model, got {type(slot.old).__name__}"
            )

    def _check_same(self, names: Sequence[str]) -> None:
        stored = dict.fromkeys(self._file.stored_name(name) for name in names)
        first, *others = (self._file.tensor(name) for name in stored)
        for name, other in zip(list(stored)[1:], others, strict=True):
            if not torch.equal(first, other):
                got = f"got others than those of {names[0]}, with which the model shares them"
                raise ValueError(f"{self._where(name)}: expected the same values, {got}")

    def _where(self, key: str) -> str:
        return f"{self._file.path}: {key}"

    def _whose(self) -> str:
        stored = self._file.manifest.model
        return f" (the file is of {stored}, the model {type(self._model).__name__})" if stored else ""


def _like(old: Tensor, new: Tensor) -> Tensor:
    """A parameter, if that is what there was."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def quantization_buffers(keys: Iterable[str], modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Those of the names that `quantize_` gives to buffers beside the parameters of these modules."""
    for key in keys:
        owner, _, name = key.rpartition(".")
        parameters = modules[owner]._parameters if owner in modules else {}
        if any(name in buffer_names(parameter) for parameter in parameters):
            yield key


def _slots(model: nn.Module) -> Iterator[tuple[str, Slot]]:
    for fqn, module in model.named_modules(remove_duplicate=False):
        prefix = f"{fqn}." if fqn else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, Slot(module._parameters, name, True, parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield (
                    prefix + name,
                    Slot(module._buffers, name, name not in module._non_persistent_buffers_set, buffer),
                )


def _extra_modules(model: nn.Module) -> dict[str, nn.Module]:
    own = nn.Module.get_extra_state
    return {
        f"{fqn}.{EXTRA}" if fqn else EXTRA: module
        for fqn, module in model.named_modules()
        if type(module).get_extra_state is not own
    }


def _tensors(values: Mapping[str, Any]) -> Iterator[Tensor]:
    """Tensors in attributes, in what they hold, and in the functions among them; not in other modules."""
    left: list[Any] = list(values.values())
    seen: set[int] = set()
    while left:
        value = left.pop()
        if type(value) in _PLAIN or (type(value) in _CONTAINERS and not value):
            continue  # nearly all that a module has
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen and not isinstance(value, (nn.Module, ModuleType, type, str, int, float)):
            seen.add(id(value))
            if isinstance(value, Mapping):
                left += value.values()
            elif isinstance(value, (list, tuple, set, frozenset)):
                left += value
            left += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            left += getattr(value, "__dict__", {}).values()
