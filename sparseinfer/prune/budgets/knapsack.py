"""Chooses one option per layer so that the total time fits a limit at the least total error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sparseinfer.prune.budgets.budget import Option
from sparseinfer.prune.patterns import Pattern

# So many cells per layer divide the time that there is to spend. What a layer takes is rounded up to cells:
# all layers together lose less than 1 / 200 of that time. Chosen, not measured.
_CELLS = 200


@dataclass(frozen=True)
class Choice:
    """A layer's option: `us` from the table; `error`: its relative output error, or growth of the loss."""

    sparsity: float
    pattern: Pattern
    us: float
    error: float


def menu_of(layers: Sequence[Mapping[Option, Choice]]) -> list[Choice]:
    """The options common to these layers, with the sums of the layers' times and errors."""
    common = [option for option in layers[0] if all(option in choices for choices in layers)]
    return [
        Choice(
            *option,
            us=sum(choices[option].us for choices in layers),
            error=sum(choices[option].error for choices in layers),
        )
        for option in common
    ]


def least_error(menus: Sequence[Sequence[Choice]], target_us: float) -> list[Choice]:
    """One option of each menu, so that the total time fits and the total error is least.

    Dynamic programming over the time above the fastest choices, in cells: `least[c]` is the least error of
    the menus so far within c cells.
    """
    freest = [min(menu, key=lambda choice: (choice.error, choice.us)) for menu in menus]
    if sum(choice.us for choice in freest) <= target_us * (1 + 1e-9):
        return freest
    cells = _CELLS * len(menus)
    fastest = [min(choice.us for choice in menu) for menu in menus]
    spare_us = target_us - sum(fastest)
    least = torch.zeros(cells + 1, dtype=torch.float64)
    picks = []
    for menu, fastest_us in zip(menus, fastest, strict=True):
        within = torch.full((len(menu), cells + 1), math.inf, dtype=torch.float64)
        for row, choice in zip(within, menu, strict=True):
            used = _cells(choice.us - fastest_us, spare_us, cells)
            if used <= cells:
                row[used:] = least[: cells + 1 - used] + choice.error
        least, pick = within.min(0)
        picks.append(pick)
    chosen, left = [], cells
    for menu, fastest_us, pick in zip(menus[::-1], fastest[::-1], picks[::-1], strict=True):
        choice = menu[int(pick[left])]
        left -= _cells(choice.us - fastest_us, spare_us, cells)
        chosen.append(choice)
    return chosen[::-1]


def _cells(us: float, spare_us: float, cells: int) -> int:
    """How many cells a time takes, rounded up; more than there are where nothing is to spare."""
    if us <= 0:
        return 0
    # Less than a rounding error above a whole number is that number.
    return math.ceil(us / spare_us * cells - 1e-9) if us <= spare_us else cells + 1
