"""The methods, budgets and patterns that can be selected by name."""

from __future__ import annotations

import re
from collections.abc import Callable

from sparseinfer.prune.budgets.budget import Budget
from sparseinfer.prune.methods.sparse import SparseMethod
from sparseinfer.prune.methods.threshold import SCOPES
from sparseinfer.prune.patterns import Pattern

__all__ = ["SCOPES", "UNIFORM", "budgets", "methods", "pattern", "patterns"]

# The budget that is a plain number: every layer gets the same sparsity.
UNIFORM = "uniform"


def methods() -> dict[str, type[SparseMethod]]:
    """Methods by name; call with a sparsity (None if the pattern determines it), `scope` and `pattern`."""
    return SparseMethod.by_name()


def budgets() -> dict[str, Callable[[float], float | Budget]]:
    """Budgets by name; call with the overall sparsity."""
    return {UNIFORM: float, **Budget.by_name()}


def patterns() -> dict[str, type[Pattern]]:
    """Patterns by the form of their text; a capital letter stands for an integer: "N:M", "RxC", "row"."""
    return Pattern.by_name()


def pattern(text: str) -> Pattern:
    """The Pattern for a text such as "2:4", "16x16" or "row". ValueError: unknown form or invalid numbers."""
    for form, kind in patterns().items():
        if match := re.fullmatch(re.sub("[A-Z]", r"(\\d+)", form), text):
            return kind(*map(int, match.groups()))
    raise ValueError(f"expected a pattern such as 2:4, 16x16, row or column, got {text!r}")
