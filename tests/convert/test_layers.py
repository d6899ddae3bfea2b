"""A model on its way through convert never goes back: no step imports a later one, no modules each other."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import sparseinfer

CONVERT = Path(sparseinfer.__file__).parent / "convert"

# What lies in convert imports from its own step and from lower numbers.
STEPS = {
    "options": 0,
    "survey": 1,
    "candidates": 2,
    "timing": 3,
    "plan": 4,
    "decisions": 4,
    "build": 5,
    "report": 6,
    "rows": 6,
    "accept": 7,
    "apply": 7,
    "densify": 7,
    "latency": 7,
    "__init__": 8,
}

# prune is no lower than convert. These take from it all the same: the hooks that hold masks, and what turns
# them into zeros; the table that LatencyBudget reads, and zeros as patterns would make them.
SIDE_DOORS = {"apply", "latency", "survey.refusals"}


def modules() -> dict[str, Path]:
    """By dotted name inside convert; the package itself is "__init__"."""
    paths = sorted(CONVERT.rglob("*.py"))
    names = (".".join(path.relative_to(CONVERT).with_suffix("").parts) for path in paths)
    return dict(zip(names, paths, strict=True))


def imported(path: Path) -> set[str]:
    """Dotted names below `sparseinfer` of the modules that a file imports, for type checkers too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("sparseinfer.") for name in names if name.startswith("sparseinfer.")}


def inside(path: Path) -> set[str]:
    """Modules of convert among them, as `modules` names them."""
    names = {name.removeprefix("convert.") for name in imported(path) if name.startswith("convert.")}
    return {name for name in names if name in modules()}


def test_every_module_belongs_to_a_step() -> None:
    assert {name.split(".")[0] for name in modules()} == set(STEPS)


def test_no_step_imports_a_later_one() -> None:
    for name, path in modules().items():
        for other in inside(path):
            assert STEPS[other.split(".")[0]] <= STEPS[name.split(".")[0]], f"{name} imports {other}"


def test_no_modules_import_each_other() -> None:
    tuple(TopologicalSorter({name: inside(path) for name, path in modules().items()}).static_order())


def test_doors_to_prune() -> None:
    doors = {name for name, path in modules().items() if any(i.startswith("prune") for i in imported(path))}
    assert doors == SIDE_DOORS
