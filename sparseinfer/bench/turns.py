"""Times whole models in turns on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

from sparseinfer._timing import Call, SelfTimed, Timing, interleave

Inputs = TypeVar("Inputs")
Model = TypeVar("Model")

# Of each model. Chosen, not measured: runs of whole models are long, and of fewer the median says nothing.
LEAST_RUNS = 5


def time_models(
    models: Mapping[str, Model],
    run: Callable[[Model, Inputs], object],
    inputs: Inputs,
    *,
    budget_s: float,
    others: Mapping[str, SelfTimed] | None = None,
) -> dict[str, Timing]:
    """Times `run(model, inputs)` of each, for `budget_s` seconds or LEAST_RUNS runs, whichever is longer.

    others   take their turns too
    """
    calls: dict[str, Sequence[Call] | SelfTimed] = {
        name: [partial(run, model, inputs)] for name, model in models.items()
    }
    calls |= others or {}
    return interleave(calls, budget_s=budget_s, min_rounds=LEAST_RUNS)


def fastest(times: Mapping[str, Timing], among: Collection[str] = ()) -> str:
    """The name of the fastest model, of all or of those in `among`."""
    return min(among or times, key=lambda name: times[name].min_us)
