"""Some thousands of mutated files; `make fuzz-files` tries more."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest
from file_mutations import Small, is_clear, mutated, original
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sparseinfer as si

_MOST_BYTES_MORE = 128 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def data(folder: Path) -> bytes:
    return original(folder)


def test_the_original_loads(data: bytes, folder: Path) -> None:
    file = folder / "original.safetensors"
    file.write_bytes(data)
    assert si.load(file, Small) is not None


def test_mutated_files(data: bytes, folder: Path) -> None:
    peak, model, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, Small(), 0
    for seed in range(1500):
        clear = is_clear(mutated(data, random.Random(f"test {seed}")), folder / "mutated.safetensors", model)
        refused += clear
        if not clear:
            model = Small()  # it was filled
    assert refused > 750
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10 < _MOST_BYTES_MORE


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_bytes_that_hypothesis_finds(data: bytes, folder: Path, drawn: st.DataObject) -> None:
    at = drawn.draw(st.integers(0, len(data)))
    new = drawn.draw(st.binary(max_size=40))
    is_clear(data[:at] + new + data[at + len(new) :], folder / "found.safetensors", Small())
