"""Rules of the code base that no reviewer should have to remember."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sparseinfer
from sparseinfer import _core

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sparseinfer"
CSRC = ROOT / "csrc"

# A module may import from its own layer and from lower numbers.
LAYERS = {
    "_core": 0,
    "_cuda": 0,
    "_native": 1,
    "formats": 2,
    "ops": 3,
    "modules": 4,
    "_arguments": 4,
    "_machine": 4,
    "_packages": 4,
    "_progress": 4,
    "_running": 4,
    "_select": 4,
    "_source": 4,
    "_timing": 4,
    "prune": 5,
    "convert": 5,
    "bench": 6,
    "hub": 6,
    "demo": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "sparseinfer"}


def test_imports_only_point_down() -> None:
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            target = layer_of(name)
            target = target if target in LAYERS else "__init__"
            assert LAYERS[target] <= LAYERS[own], f"{path.relative_to(ROOT)} imports {name}"


def test_prune_knows_no_kernel() -> None:
    for path in (PACKAGE / "prune").rglob("*.py"):
        assert not {layer_of(name) for name in imports(path)} & {
            "ops",
            "modules",
            "convert",
            "_core",
            "_native",
        }


def includes(path: Path) -> list[str]:
    return re.findall(r'#include "([^"]+)"', path.read_text())


def test_native_layers_only_point_down() -> None:
    """bindings -> core -> include; cpu and cuda -> include and themselves."""
    for folder in ("cpu", "cuda"):
        for path in (CSRC / folder).rglob("*.*"):
            assert all(i.startswith((f"{folder}/", "sparseinfer/")) for i in includes(path)), path
    for path in (CSRC / "include").rglob("*.h"):
        assert all(i.startswith("sparseinfer/") for i in includes(path)), path
    for folder in ("core", "packings", "cpu", "cuda", "include"):
        for path in (CSRC / folder).rglob("*.*"):
            assert "pybind11" not in path.read_text(), path
            assert not re.search(r"#include [<\"](torch|ATen|c10|omp)", path.read_text()), path


def test_kernels_use_no_cpp_library() -> None:
    for path in (CSRC / "cpu").iterdir():
        assert "std::" not in path.read_text(), path


def isa_flags(isa: str) -> list[str]:
    text = (CSRC / "cmake/IsaFlags.cmake").read_text()
    (found,) = re.findall(rf"SPARSEINFER_ISA_FLAGS_{isa} ([^)]*)\)", text)
    flags: list[str] = []
    for flag in found.split():
        other = re.fullmatch(r"\$\{SPARSEINFER_ISA_FLAGS_(\w+)\}", flag)
        flags += isa_flags(other[1]) if other else [flag]
    return flags


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize("isa", list(dict.fromkeys(kernel["isa"] for kernel in _core.kernels())))
def test_no_weak_symbols_in_isa_objects(isa: str, tmp_path: Path) -> None:
    """A weak symbol compiled with AVX-512 flags could be the copy that the linker keeps for every CPU."""
    options = isa_flags(isa)
    assert options
    source, target = CSRC / f"cpu/kernels_{isa}.cpp", tmp_path / "kernels.o"
    search = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    compile_ = ["c++", "-std=c++17", "-O0", "-fPIC", *options, *search, "-c", str(source), "-o", str(target)]
    subprocess.run(compile_, check=True, capture_output=True)
    symbols = subprocess.run(["nm", str(target)], check=True, capture_output=True, text=True).stdout
    assert f"kernels_{isa}" in symbols
    weak = [line for line in symbols.splitlines() if re.search(r" [WwVvu] ", line)]
    assert weak == []


def stub_names() -> set[str]:
    names = set()
    for node in ast.parse((PACKAGE / "_core.pyi").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_stub_names_match_the_module() -> None:
    private = {"__doc__", "__file__", "__loader__", "__name__", "__package__", "__spec__"}
    hidden = {name for name in dir(_core) if name.startswith("__") and name != "__version__"}
    assert stub_names() == set(dir(_core)) - private - hidden


def test_stub_arguments_match_the_module() -> None:
    for node in ast.parse((PACKAGE / "_core.pyi").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            signature = (getattr(_core, node.name).__doc__ or "").splitlines()[0]
            inside = signature[signature.index("(") + 1 : signature.rindex(")")]
            native = re.findall(r"(\w+): ", inside)
            assert native == [a.arg for a in node.args.args], signature


def test_versions_are_equal() -> None:
    declared = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert declared[1] == _core.__version__ == sparseinfer.__version__
    assert f"## {declared[1]}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("readelf") is None, reason="readelf reads ELF only"
)
def test_needed_libraries_have_no_torch_and_no_openmp() -> None:
    shown = subprocess.run(
        ["readelf", "-d", _core.__file__], check=True, capture_output=True, text=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", shown)
    assert needed
    assert not [name for name in needed if re.search(r"torch|c10|omp|mkl", name)], needed


def test_files_can_be_read_in_one_go() -> None:
    for pattern in ("sparseinfer/**/*.py", "csrc/**/*.cpp", "csrc/**/*.h", "csrc/**/*.cu*", "tests/**/*.py"):
        for path in ROOT.glob(pattern):
            assert len(path.read_text().splitlines()) <= 400, path
