"""Fixtures of the tests of model folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparseinfer._timing import num_threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers are no work for several."""
    with num_threads(1):
        yield


@pytest.fixture
def words(tmp_path: Path) -> Path:
    from hub_helpers import text  # skips where transformers is missing, which a conftest must not

    path = tmp_path / "text.txt"
    path.write_text(text(20))
    return path
