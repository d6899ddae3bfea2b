"""Argument checks shared by many functions."""

from __future__ import annotations

import math
from numbers import Real

from torch import nn


def check_module(model: object) -> None:
    """Raises TypeError unless it is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def check_int(name: str, value: object, least: int) -> None:
    """TypeError or ValueError unless it is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def check_positive(name: str, value: float, *, finite: bool = False) -> None:
    """ValueError unless it is above 0 and, if `finite`, below infinity."""
    if not value > 0 or (finite and value == math.inf):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")


def check_fraction(name: str, value: object) -> None:
    """TypeError or ValueError unless it is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a float, got {type(value).__name__}")
    if not 0 <= float(value) < 1:  # also refuses NaN
        hint = "a fraction, not percent: 0.5 prunes half"
        raise ValueError(f"{name}: expected a number in [0, 1), got {value} ({hint})")
