"""Session-wide test set-up."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Warnings are errors here, and torch says this one once per process about its own CSR and BSR tensors.
    config.addinivalue_line(
        "filterwarnings", "ignore:Sparse (CSR|BSR) tensor support is in beta state:UserWarning"
    )
