"""Schedules: when to prune during training, and to which sparsity."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from sparseinfer.prune.checks import check_int


class Schedule(ABC):
    """When to prune during training, and to which sparsity. Steps are counted from 1.

    A new one is a subclass with `events` and `sparsity`.
    """

    @property
    @abstractmethod
    def events(self) -> range:
        """The steps after which to prune. The last one reaches the final sparsity."""

    @abstractmethod
    def sparsity(self, step: int, final: float) -> float:
        """The sparsity to reach at one of the events; `final` itself at the last."""


@dataclass(frozen=True)
class OneShot(Schedule):
    """Prunes everything after one step."""

    at: int = 1

    def __post_init__(self) -> None:
        check_int("at", self.at, 1)

    @property
    def events(self) -> range:
        return range(self.at, self.at + 1)

    def sparsity(self, step: int, final: float) -> float:
        return final


@dataclass(frozen=True)
class Gradual(Schedule):
    """Pruning after the steps begin, begin + every, ... up to `end`; every must divide end - begin.

    ValueError or TypeError if the steps are not as described.
    """

    begin: int
    end: int
    every: int

    def __post_init__(self) -> None:
        check_int("begin", self.begin, 1)
        check_int("every", self.every, 1)
        check_int("end", self.end, self.begin)
        if (self.end - self.begin) % self.every:
            got = f"{self.end} with begin={self.begin} and every={self.every}"
            raise ValueError(f"end: expected begin plus a multiple of every, got {got}")

    @property
    def events(self) -> range:
        return range(self.begin, self.end + 1, self.every)

    def _progress(self, step: int) -> float:
        """The part of the events that are done after this one, in (0, 1]."""
        return (self.events.index(step) + 1) / len(self.events)


class Linear(Gradual):
    """Equal steps of sparsity: Linear(100, 1000, 100) prunes a tenth of the final sparsity at each event."""

    def sparsity(self, step: int, final: float) -> float:
        return final * self._progress(step)


class Cubic(Gradual):
    """Prunes much while many weights are redundant, little at the end: final · (1 - (1 - progress)³).

    Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression"
    (2017).
    """

    def sparsity(self, step: int, final: float) -> float:
        return final * (1 - (1 - self._progress(step)) ** 3)


class Geometric(Gradual):
    """Prunes the same fraction of the remaining weights each time: density shrinks as density_final^progress.

    The iterative pruning of Frankle and Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable
    Neural Networks" (2019), where every round trains for `every` steps.
    """

    def sparsity(self, step: int, final: float) -> float:
        # Exactly `final` in the end.
        progress = self._progress(step)
        return final if progress == 1 else -math.expm1(progress * math.log1p(-final))
