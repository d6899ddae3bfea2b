"""Checks calibration batches and iterates over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

# (model, batch) -> the model's output
Forward = Callable[[nn.Module, Any], Any]


def checked_batches(batches: Iterable[Any]) -> Iterable[Any]:
    """TypeError: one batch instead of several."""
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        hint = "a single batch goes into a list"
        raise TypeError(f"batches: expected an iterable of batches, got {type(batches).__name__} ({hint})")
    return batches


def every_batch(batches: Iterable[Any]) -> Iterator[Any]:
    """Iterates over the batches; ValueError at the end if there was none."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ValueError("batches: expected at least one, got none (was an iterator used before?)")
