"""The native modules, built here if need be, and the GPU that they run on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build-cuda"
console = Console(width=160)


def load_native(build: bool) -> None:
    """The native modules from build-cuda, if they are not installed; `build` makes them first."""
    sys.path.insert(0, str(ROOT))
    missing = [name for name in ("_core", "_cuda") if not _installed(name)]
    if missing and build:
        _build(missing)
    for name in missing:
        for library in sorted(BUILD.glob(f"{name}.*.so")):
            spec = spec_from_file_location(f"sparseinfer.{name}", library)
            assert spec is not None
            assert spec.loader is not None
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[spec.name] = module


def _installed(name: str) -> bool:
    try:
        return import_module(f"sparseinfer.{name}") is not None
    except ImportError:
        return False


def _build(targets: Sequence[str]) -> None:
    import pybind11

    console.print(f"building {', '.join(targets)} ...")
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    options = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "SPARSEINFER_CUDA": "ON",
        "SKBUILD_PROJECT_VERSION": version[1],
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(BUILD), *defines],
        ["cmake", "--build", str(BUILD), "--parallel", "--target", *targets],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def machine() -> dict[str, Any]:
    """The GPU, its clocks as they are now, and the versions of everything in between."""
    from sparseinfer._machine import versions
    from sparseinfer.ops.cuda.kernels import cuda

    about: dict[str, Any] = {
        "versions": versions(),
        "torch_cuda": torch.version.cuda,
        "toolkit": cuda().toolkit,
    }
    about |= cuda().device(torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    about["memory_bytes"], about["l2_bytes"] = properties.total_memory, properties.L2_cache_size
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    if shutil.which("nvidia-smi"):
        line = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.splitlines()
        if line:
            about["nvidia_smi"] = dict(zip(query.split(","), line[0].split(", "), strict=False))
    return about
