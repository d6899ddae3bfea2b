"""Rules of the native sources and of the modules built from them."""

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

# What the files of each folder may include, besides what lies beside them: sparseinfer/ is csrc/include.
INCLUDES = {
    "include": ("sparseinfer/",),
    "cpu": ("cpu/", "sparseinfer/"),
    "cuda": ("cuda/", "sparseinfer/"),
    "packings": ("packings/", "sparseinfer/"),
    "core": ("core/", "sparseinfer/", "cuda/kernels.inc"),
    "bindings": ("bindings/", "sparseinfer/", "cuda/launch.h"),
}


def includes(path: Path) -> list[str]:
    return re.findall(r'#include "([^"]+)"', path.read_text())


def files(folder: str) -> list[Path]:
    return sorted((CSRC / folder).rglob("*.*"))


def test_every_folder_has_its_includes() -> None:
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} - {"cmake"} == set(INCLUDES)


@pytest.mark.parametrize("folder", INCLUDES)
def test_includes_only_point_down(folder: str) -> None:
    for path in files(folder):
        beside = [include for include in includes(path) if "/" not in include]
        assert all((path.parent / include).exists() for include in beside), path
        assert all(i.startswith(INCLUDES[folder]) for i in includes(path) if "/" in i), path


@pytest.mark.parametrize("folder", [folder for folder in INCLUDES if folder != "bindings"])
def test_no_python_no_torch_and_no_openmp(folder: str) -> None:
    for path in files(folder):
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
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
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
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            assert native == [a.arg for a in arguments], signature


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
