"""Ways of a module, or of a state_dict, to another process."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch


def by_pickle(value: Any, protocol: int | None = None) -> Any:
    """The value, pickled and loaded again."""
    return pickle.loads(pickle.dumps(value, protocol=protocol))


def by_file(value: Any, *, weights_only: bool = False) -> Any:
    """The value, written with torch.save and loaded again."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)
