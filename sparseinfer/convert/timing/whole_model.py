"""The whole converted model against the original: parts that make it slower are found by halving.

Layers were compared one by one. That says nothing of what lies between them: fused calls of torch that a
replaced layer prevents, caches, checks at every call.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

from torch import Tensor, nn

from sparseinfer._running import call, copied, for_a_run
from sparseinfer._timing import Call
from sparseinfer.convert.timing.ranking import rank

Part = TypeVar("Part")
IsSlower = Callable[[Sequence[Part]], "bool | None"]

# All comparisons together take at most this share of `budget_s`, and one of them at least so many calls of
# the original: where there is no time for the first, there is none. Each lasts as long as a hundred calls,
# within limits, and up to four times that where it is a close call. Chosen, not measured.
_SHARE = 0.5
_CALLS = 20
_ENOUGH_CALLS = 100
_LEAST_S, _MOST_S = 0.02, 0.5
# By how much the converted model has to be slower, as candidates that differ by less count as equal; and
# where the faster of two calls takes this share of the original's time, nothing more is asked.
_SLOWER = 1.02
_CLEARLY_FASTER = 0.9


def parts_to_leave(parts: Sequence[Part], is_slower: IsSlower[Part]) -> list[Part]:
    """The parts without which the converted model is not surely slower than the original.

    is_slower   whether the model is surely slower with only these parts converted; None: there was no time
    """
    left: list[Part] = []
    while (kept := [part for part in parts if part not in left]) and is_slower(kept):
        left += _guilty(kept, is_slower)
    return left


def _guilty(parts: Sequence[Part], is_slower: IsSlower[Part]) -> list[Part]:
    """Those of parts that together make the model slower; all, where neither half does it alone.

    What there was no time for counts as guilty: the original is the model that the user has.
    """
    if len(parts) == 1:
        return list(parts)
    middle = len(parts) // 2
    guilty = [half for half in (parts[:middle], parts[middle:]) if is_slower(half) is not False]
    return [part for half in guilty for part in _guilty(half, is_slower)] if guilty else list(parts)


class Comparison:
    """Compares converted models with a dense one, by runs with the example inputs in turns."""

    def __init__(self, model: nn.Module, inputs: Any, budget_s: float) -> None:
        self._model, self._inputs = model, inputs
        self._deadline = time.perf_counter() + _SHARE * budget_s

    def against(self, made: Callable[[], nn.Module]) -> Comparison | None:
        """The same within the same time with another dense model; None: it cannot be made."""
        try:
            model = made()
        except Exception:
            return None
        other = copy(self)
        other._model = model
        return other

    def is_slower(self, convert: Callable[[], nn.Module]) -> bool | None:
        """Whether a converted model is surely slower than the dense one; None: there was no time to tell.

        Nor can it be told of a model that cannot be copied, or called more often.
        """
        if time.perf_counter() > self._deadline:
            return None
        try:
            return self._is_slower(convert())
        except Exception:
            return None

    def _is_slower(self, converted: nn.Module) -> bool | None:
        with warnings.catch_warnings(), for_a_run(self._model), for_a_run(converted):
            warnings.simplefilter("ignore")  # said once, when the model was run to be looked at
            dense, fast = (_repeatable(model, self._inputs) for model in (self._model, converted))
            for call_once in (dense, fast):  # what is made at the first call
                call_once()
            turns = [(_seconds(dense), _seconds(fast)) for _ in range(2)]
            dense_s, fast_s = map(min, zip(*turns, strict=True))
            if fast_s < _CLEARLY_FASTER * dense_s:
                return False
            if time.perf_counter() + _CALLS * dense_s > self._deadline:
                return None
            budget_s = min(max(_ENOUGH_CALLS * dense_s, _LEAST_S), _MOST_S)
            ranking = rank({"dense": [dense], "fast": [fast]}, budget_s=budget_s)
            return ranking.is_sure and ranking.us["fast"] > _SLOWER * ranking.us["dense"]


def _seconds(call_once: Call) -> float:
    start = time.perf_counter()
    call_once()
    return time.perf_counter() - start


def _repeatable(model: nn.Module, inputs: Any) -> Call:
    """A call with copies of the inputs: a new one each time of objects that may grow, such as caches."""
    given = copied(inputs, model)
    if _is_of_tensors(given):
        return lambda: call(model, given)
    return lambda: call(model, copied(inputs, model))


def _is_of_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return all(map(_is_of_tensors, value))
    return value is None or isinstance(value, (Tensor, bool, int, float, str))
