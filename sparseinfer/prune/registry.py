"""What the command line, `hub` and `bench` offer by name; the classes say their names themselves."""

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
    """Called with a sparsity, or None where the pattern says it, and the options `scope` and `pattern`."""
    return SparseMethod.by_name()


def budgets() -> dict[str, Callable[[float], float | Budget]]:
    """Called with the sparsity of all layers together."""
    return {UNIFORM: float, **Budget.by_name()}


def patterns() -> dict[str, type[Pattern]]:
    """By the form of their text, where a capital letter stands for a whole number: "N:M", "RxC", "row"."""
    return Pattern.by_name()


def pattern(text: str) -> Pattern:
    """Of a text such as "2:4", "16x16" or "row". ValueError: there is none, or not with these numbers."""
    for form, kind in patterns().items():
        if match := re.fullmatch(re.sub("[A-Z]", r"(\\d+)", form), text):
            return kind(*map(int, match.groups()))
    raise ValueError(f"expected a pattern such as 2:4, 16x16, row or column, got {text!r}")
