"""What convert was asked for, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

DEFAULT_TOKENS = (1, 16, 128)

# Named values of `memory`.
SPEED = math.inf
COMPACT = 0.0

# "speed", "compact", or how many times the dense weight's bytes the packings of a layer may take.
Memory: TypeAlias = "str | float"

_WEIGHTS = (None, torch.bfloat16, torch.float16)
_ACTIVATIONS = (None, torch.bfloat16)


@dataclass(frozen=True)
class Options:
    """The arguments of `convert` that say how, without those that say which modules.

    `tokens` is None where example inputs may say it; `memory` is a number: see SPEED and COMPACT. `targeted`:
    the layers were asked for by name, those too that the example does not reach.
    """

    tokens: tuple[int, ...] | None
    weights: torch.dtype | None
    activations: torch.dtype | None
    memory: float
    measure: bool
    budget_s: float
    fuse: bool
    fold_batch_norm: bool
    targeted: bool = False

    def unfused(self) -> Options:
        return replace(self, fuse=False, fold_batch_norm=False)

    def unfolded(self) -> Options:
        return replace(self, fold_batch_norm=False)

    def tolerance(self, dtype: torch.dtype) -> float:
        """How far results of this dtype may lie from those of the model as it was, relative to their norm."""
        if self.weights is None and dtype in (torch.float32, torch.float64):
            return 1e-3
        # Rounding to bfloat16 costs 3e-3 on BERT-base and 2e-2 at most of 211 small random models.
        return 0.05

    @classmethod
    def checked(
        cls,
        *,
        tokens: Sequence[int] | None,
        weights: torch.dtype | None,
        activations: torch.dtype | None,
        memory: Memory,
        measure: bool,
        budget_s: float,
        fuse: bool,
        fold_batch_norm: bool,
        targeted: bool = False,
    ) -> Options:
        """TypeError or ValueError that names the argument, what was expected and what came."""
        if weights not in _WEIGHTS:
            raise ValueError(f"weights: expected None, torch.bfloat16 or torch.float16, got {weights!r}")
        if activations not in _ACTIVATIONS:
            raise ValueError(f"activations: expected None or torch.bfloat16, got {activations!r}")
        if activations is not None and weights != torch.bfloat16:
            hint = "kernels multiply bfloat16 activations by weights of the same dtype"
            raise ValueError(
                f"weights: expected torch.bfloat16 with these activations, got {weights} ({hint})"
            )
        if not isinstance(budget_s, (int, float)) or not budget_s >= 0:
            raise ValueError(f"budget_s: expected a number of seconds from 0, got {budget_s!r}")
        return cls(
            tokens=None if tokens is None else checked_tokens(tokens),
            weights=weights,
            activations=activations,
            memory=checked_memory(memory),
            measure=measure,
            budget_s=budget_s,
            fuse=fuse,
            fold_batch_norm=fold_batch_norm,
            targeted=targeted,
        )


def checked_tokens(tokens: Sequence[int]) -> tuple[int, ...]:
    """Distinct counts, ascending. TypeError or ValueError unless it is a sequence of positive integers."""
    try:
        counts = sorted({operator.index(count) for count in tokens})
    except TypeError:
        raise TypeError(f"tokens: expected a sequence of integers, got {tokens!r}") from None
    if not counts or counts[0] < 1:
        raise ValueError(f"tokens: expected positive integers, got {tokens!r}")
    return tuple(counts)


def checked_memory(memory: Memory) -> float:
    """The budget as a number: "speed" is no limit, "compact" is 0."""
    named = {"speed": SPEED, "compact": COMPACT}
    if isinstance(memory, str) and memory in named:
        return named[memory]
    if isinstance(memory, (bool, str)) or not isinstance(memory, (int, float)) or not memory > 0:
        raise ValueError(f"memory: expected 'speed', 'compact' or a positive number, got {memory!r}")
    return float(memory)
