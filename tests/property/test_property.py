"""Small random models, converted for one input and run with others: they do what the dense ones do.

property_programs.py says what is drawn, property_check.py what is compared. A failure prints a small model
as a file that runs; `make fuzz SECONDS=1800` looks for others.
"""

from __future__ import annotations

import pytest
from property_cases import Case
from property_check import check
from property_compare import Mismatch
from property_known import KNOWN

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from property_fuzz import examples, report

SEEDS, EXAMPLES = 24, 25


@pytest.mark.parametrize("number", range(SEEDS))
def test_converted_models_are_equal(number: int) -> None:
    found: list[str] = []

    def failed(case: Case, mismatch: Mismatch) -> None:
        found.append(report(case, mismatch))

    seen = examples(number, EXAMPLES, failed)
    assert not found, found[0]
    assert seen["equal"] > EXAMPLES // 2, seen


@pytest.mark.parametrize("name", KNOWN)
def test_what_was_wrong_once(name: str) -> None:
    """Cases as they are drawn, each of which was wrong before."""
    check(KNOWN[name])
