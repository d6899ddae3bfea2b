"""Everything public has a docstring: what packages export, and the public methods and properties of it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import sparseinfer

PACKAGES = (
    "sparseinfer",
    "sparseinfer.convert",
    "sparseinfer.formats",
    "sparseinfer.io",
    "sparseinfer.io.compressed_tensors",
    "sparseinfer.io.export",
    "sparseinfer.io.peft",
    "sparseinfer.modules",
    "sparseinfer.ops",
    "sparseinfer.prune",
    "sparseinfer.prune.solvers",
    "sparseinfer.quantize",
    "sparseinfer.report",
    "sparseinfer.select",
    "sparseinfer.serve",
)


class Documented(NamedTuple):
    """A public name, and the docstring that a reader finds for it."""

    name: str
    text: str | None


def exported(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What `__all__` lists, or, in a module without it, what is defined there."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for name in names:
        yield name, getattr(module, name)


def documented(module: ModuleType) -> Iterator[Documented]:
    yield Documented(module.__name__, module.__doc__)
    for name, value in exported(module):
        where = f"{module.__name__}.{name}"
        if inspect.isclass(value):
            yield Documented(where, own_doc(value))
            yield from members(where, value)
        elif inspect.isroutine(value):
            yield Documented(where, inspect.getdoc(value))


def own_doc(cls: type) -> str | None:
    """Not the signature that a dataclass is given in place of one, nor the base's."""
    text = cls.__dict__.get("__doc__")
    return None if text and text.startswith(f"{cls.__name__}(") else text


def members(where: str, cls: type) -> Iterator[Documented]:
    """Public methods and properties that this package defines; an override may inherit its docstring."""
    for name, value in vars(cls).items():
        if name.startswith("_") or not (
            inspect.isroutine(value) or isinstance(value, property | classmethod)
        ):
            continue
        function = value.fget if isinstance(value, property) else value
        if not getattr(function, "__module__", "").startswith("sparseinfer"):
            continue  # torch's own, under torch's name
        yield Documented(f"{where}.{name}", inspect.getdoc(getattr(cls, name)))


@pytest.mark.parametrize("package", PACKAGES)
def test_all_that_is_public_has_a_docstring(package: str) -> None:
    found = list(documented(importlib.import_module(package)))
    assert len(found) > 1
    assert [one.name for one in found if not (one.text or "").strip()] == []


def test_the_list_of_packages_is_complete() -> None:
    """Every package whose `__init__` exports something."""
    exporting = {
        f"sparseinfer.{path.parent.name}"
        for path in Path(sparseinfer.__file__).parent.glob("*/__init__.py")
        if "__all__" in path.read_text(encoding="utf-8")
    }
    assert exporting <= set(PACKAGES)
