"""One thread and no autograd for every benchmark; SPARSEINFER_ISA chooses the level as everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparseinfer._timing import num_threads


@pytest.fixture(autouse=True)
def _inference_on_one_thread() -> Iterator[None]:
    with num_threads(1), torch.inference_mode():
        yield
