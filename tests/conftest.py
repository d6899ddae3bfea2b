"""Session-wide test set-up."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import cuda_emulator
import pytest
import torch
from convert_helpers import Script
from cuda_native import Native, installed

from sparseinfer.convert import decisions, whole
from sparseinfer.convert.assembly import replacements


def pytest_configure(config: pytest.Config) -> None:
    # Warnings are errors here; these are torch's own words on its beta layouts and on our empty layers.
    config.addinivalue_line(
        "filterwarnings", "ignore:Sparse (CSR|BSR) tensor support is in beta state:UserWarning"
    )
    config.addinivalue_line(
        "filterwarnings", "ignore:Initializing zero-element tensors is a no-op:UserWarning"
    )


@pytest.fixture(autouse=True)
def no_verdicts_of_earlier_runs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversions remember what they measured in a folder of this test's own."""
    monkeypatch.setenv("SPARSEINFER_CACHE_DIR", str(tmp_path_factory.mktemp("verdicts")))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """`convert` takes times from a script instead of measuring."""
    script = Script()
    monkeypatch.setattr(decisions, "Timer", lambda **options: script)
    monkeypatch.setattr(replacements, "slower_than_torch", lambda *layers, **how: script.whole_layer)
    monkeypatch.setattr(whole, "Comparison", script.comparison)
    return script


@pytest.fixture
def no_grad() -> Iterator[None]:
    """The whole test runs without gradients."""
    with torch.no_grad():
        yield


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Native:
    """The CUDA operators call this instead of the native module."""
    return installed(monkeypatch)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernels, for `cuda_emulator.call`."""
    return cuda_emulator.build(tmp_path_factory.mktemp("emulated"))
