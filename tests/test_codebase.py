"""Rules that no reviewer should have to remember: which module may import which, and how long things are.

A module is named by its path below `sparseinfer`, "ops.plan"; the name of a package, "ops", means its
`__init__`, and "" that of sparseinfer. Imports inside functions and under TYPE_CHECKING count like any other.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sparseinfer"

# The layers, from the bottom up. A module may import what lies lower, and what stands under the same name as
# itself, but nothing else of its own layer. A package may have layers inside, such as "convert.survey": then
# each of its modules stands under one of them, they are in order from 0 up, and its `__init__` is on top.
LAYERS: dict[str, int] = {
    "_core": 0,
    "_cuda": 0,
    "_native": 1,
    "formats": 2,
    "ops": 3,
    "ops.dense": 0,
    "ops.geometry": 0,
    "ops.kernel": 0,
    "ops.names": 0,
    "ops.plan": 0,
    "ops.same": 0,
    "ops.arguments": 1,
    "ops.packed": 1,
    "ops.schema": 1,
    "ops.cpu": 2,
    "ops.cuda": 2,
    "ops.backend": 3,
    "ops.layout": 4,
    "ops.reference": 4,
    "ops.transforms": 4,
    "ops.candidates": 5,
    "ops.eager": 5,
    "_arguments": 4,
    "_int8": 4,
    "_cache_files": 4,
    "_machine": 4,
    "_on_import": 4,
    "_packages": 4,
    "_progress": 4,
    "_running": 4,
    "_source": 4,
    "_tables": 4,
    "_timing": 4,
    "_transposed": 3,
    "select": 4,
    "_rates": 5,
    "modules": 5,
    "prune": 6,
    "quantize": 7,
    "convert": 6,
    "convert.options": 0,
    "convert.survey": 1,
    "convert.candidates": 2,
    "convert.timing": 3,
    "convert.rounding": 1,
    "convert.ways": 4,
    "convert.plan": 5,
    "convert.decisions": 6,
    "convert.assembly": 7,
    "convert.report": 8,
    "convert.accept": 9,
    "convert.record": 9,
    "convert.rows": 9,
    "convert.whole": 9,
    "convert.apply": 10,
    "convert.densify": 10,
    "convert.latency": 10,
    "convert.one_by_one": 10,
    "convert.reload": 10,
    "io": 8,
    "bench": 8,
    "hub": 9,
    "demo": 10,
    "serve": 10,
    "report": 10,
    "cli": 11,
    "": 12,
    "__main__": 13,
}

# Imports that the layers do not allow: (from, to) and why they are right all the same. Each must be needed.
SIDE_DOORS: dict[tuple[str, str], str] = {
    ("convert.apply", "prune"): "a model is converted as it is when its masks are finished",
    ("convert.survey.refusals", "prune.masks"): "a held mask is a hook that a layer may have all the same",
    ("convert.latency", "prune"): "the latency table is of layers pruned in prune's patterns, for its budget",
}

# What a package must not import, though it lies lower.
NEVER = dict.fromkeys(("prune", "quantize"), ("_core", "_cuda", "_native", "ops", "modules"))

# What breaks a rule below, by the rule's name. These sets only shrink: one that is no longer needed fails.
STILL: dict[str, set[str]] = {
    "private": set(),
    "cycles": set(),
    "function": set(),
    "positions": set(),
    "bindings": set(),
}

HAVE_DOCSTRINGS = (ast.ClassDef, ast.FunctionDef)
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 400, 80
MEDIAN_LINES = {"sparseinfer": 120, "csrc": 120, "bench": 120, "tests": 200}
POSITIONS, ARGUMENTS_OF_A_BINDING = 8, 6


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py*")):
        if path.suffix in (".py", ".pyi"):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(name: str) -> str:
    """The module that an imported name is or stands in."""
    inside = name.removeprefix("sparseinfer").removeprefix(".")
    return inside if inside in modules() else inside.rpartition(".")[0]


@cache
def imports(module: str) -> frozenset[str]:
    names = []
    for node in ast.walk(tree(modules()[module])):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: expected absolute imports, got a relative one"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    inner = {module_of(name) for name in names if name.partition(".")[0] == "sparseinfer"}
    return frozenset(inner - {module})


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def layers_of(module: str) -> list[str]:
    """The names in LAYERS that a module stands under, the widest first."""
    return [name for name in sorted(LAYERS, key=len) if within(module, name)]


def points_down(module: str, imported: str) -> bool:
    for own, other in zip(layers_of(module), layers_of(imported), strict=False):
        if own != other:
            return LAYERS[own] > LAYERS[other]
    # Under the same name: inside of it nothing imports the front of a package that has layers.
    return len(layers_of(module)) <= len(layers_of(imported))


def side_door(module: str, imported: str) -> tuple[str, str] | None:
    return next((d for d in SIDE_DOORS if within(module, d[0]) and within(imported, d[1])), None)


def test_no_folder_has_a_name_that_wheels_leave_out() -> None:
    """Builders of wheels take folders of these names for their own results, and leave them out."""
    names = {part for path in modules().values() for part in path.relative_to(PACKAGE).parts}
    assert not names & {"build", "dist", "env", "venv"}


def test_every_module_has_a_layer() -> None:
    split = {name.rpartition(".")[0] for name in LAYERS if "." in name}
    for module in modules():
        depth = 1 + any(within(module, package) and module != package for package in split)
        assert len(layers_of(module)) == depth, f"{module or '__init__'}: expected one row in LAYERS"
    for name in (*LAYERS, *NEVER):
        assert name in modules(), f"{name}: expected a module of that name"


def test_imports_only_point_down() -> None:
    up = [(m, i) for m in modules() for i in sorted(imports(m)) if not points_down(m, i)]
    used = {door for m, i in up if (door := side_door(m, i))}
    assert [f"{m or '__init__'} imports {i}" for m, i in up if not side_door(m, i)] == []
    assert used == set(SIDE_DOORS), "expected each side door to be needed"


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("high.upper.part", "high.lower", True),
        ("high.lower", "high.upper.part", False),
        ("high.lower", "high.lower.part", True),
        ("high.lower", "high", False),
        ("high", "high.upper", True),
        ("high.lower", "low", True),
        ("low", "high.lower", False),
        ("beside", "high.lower", False),
        ("high", "beside.part", False),
    ],
)
def test_what_points_down(module: str, imported: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"low": 0, "high": 1, "beside": 1, "high.lower": 0, "high.upper": 1}
    monkeypatch.setattr(sys.modules[__name__], "LAYERS", layers)
    assert points_down(module, imported) is allowed


def test_what_a_package_never_imports() -> None:
    for module in modules():
        refused = [name for package, names in NEVER.items() if within(module, package) for name in names]
        assert not [i for i in imports(module) if any(within(i, name) for name in refused)], module


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert cycles() == STILL["cycles"]


def cycles() -> set[str]:
    """The sets of modules each of which reaches all others of its set, as text."""
    reached: dict[str, set[str]] = {}
    for module in modules():
        todo, seen = [module], set()
        while todo:
            for imported in imports(todo.pop()) - seen:
                seen.add(imported)
                todo.append(imported)
        reached[module] = seen
    alike = [{m for m in seen if module in reached[m]} for module, seen in reached.items()]
    return {", ".join(sorted(same)) for same in alike if same}


def test_private_modules_are_imported_by_their_package_alone() -> None:
    used = set()
    for module in modules():
        for imported in imports(module):
            package, _, name = imported.rpartition(".")
            if name.startswith("_") and package and not within(module, package):
                used.add(imported)
    assert used == STILL["private"]


def test_public_docstrings_point_to_public_modules() -> None:
    for module in modules():
        if "._" not in f".{module}":
            holders = [n for n in ast.walk(tree(modules()[module])) if isinstance(n, HAVE_DOCSTRINGS)]
            texts = [ast.get_docstring(holder) or "" for holder in holders]
            assert not [text for text in texts if re.search(r"sparseinfer(\.\w+)*\._[a-z]", text)], module


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions of a module and methods of its classes, by name; those inside of others are part of them."""
    for node in tree(modules()[module]).body:
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                yield f"{module}.{owner}{inner.name}", inner


def positions(function: ast.FunctionDef) -> int:
    """Parameters that may be given by position, without self."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def native_functions(path: Path) -> Iterator[tuple[str, int]]:
    """First line and number of lines of what clang-format leaves at the margin and closes there."""
    first, head = 0, ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"\w.*\{$", line) and not re.match(r"(namespace|struct|class|enum|union|extern)\b", line):
            first, head = number, line
        elif line.startswith("}") and first:
            yield head, number - first + 1
            first = 0


def test_functions_are_short() -> None:
    long = set()
    for path in sources("sparseinfer", "tests", "bench"):
        if path.suffix == ".py":
            defs = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]
            lines = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in defs]
            long |= {f"{path.relative_to(ROOT)}: {name}" for name, n in lines if n > LINES_OF_A_FUNCTION}
    for path in sources("csrc"):
        lines = list(native_functions(path))
        long |= {f"{path.relative_to(ROOT)}: {name}" for name, n in lines if n > LINES_OF_A_FUNCTION}
    assert long == STILL["function"]


def test_public_functions_take_few_arguments_by_position() -> None:
    long = set()
    for module in modules():
        for name, function in functions(module):
            public = not any(part.startswith("_") for part in name.replace("__init__", "init").split("."))
            if public and positions(function) > POSITIONS:
                long.add(name)
    assert long == STILL["positions"]


def test_bindings_take_few_arguments() -> None:
    bindings = [pair for module in ("_core", "_cuda") for pair in functions(module)]
    taken = {name: len(function.args.kwonlyargs) + positions(function) for name, function in bindings}
    assert {name for name, count in taken.items() if count > ARGUMENTS_OF_A_BINDING} == STILL["bindings"]


def sources(*folders: str) -> list[Path]:
    endings = (".py", ".pyi", ".cpp", ".h", ".cu", ".cuh", ".inc")
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.*")) if p.suffix in endings]


@pytest.mark.parametrize("folder", MEDIAN_LINES)
def test_files_can_be_read_in_one_go(folder: str) -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(folder)}
    assert not {str(path): n for path, n in lines.items() if n > LINES_OF_A_FILE}
    assert statistics.median(lines.values()) <= MEDIAN_LINES[folder]
