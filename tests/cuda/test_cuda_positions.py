"""The arithmetic of the CUDA kernels on threads and bytes, compiled for the host."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")
def test_positions(tmp_path: Path) -> None:
    program = tmp_path / "positions"
    search = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    source = ROOT / "tests/cuda/positions.cpp"
    subprocess.run(
        ["c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *search, str(source), "-o", str(program)],
        check=True,
    )
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    checks = re.search(r"(\d+) checks, 0 failed", ran.stdout)
    assert checks is not None
    assert int(checks[1]) > 100_000
