"""Session-wide test set-up."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Said once per process by torch when the first CSR or BSR tensor is made; not ours to fix, and warnings are errors.
    config.addinivalue_line("filterwarnings", "ignore:Sparse (CSR|BSR) tensor support is in beta state:UserWarning")
