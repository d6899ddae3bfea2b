"""Predicts times on a CPU, for convert(measure=False) and for what the time budget does not cover.

One number per candidate, token count and sparsity: nanoseconds per thousand multiply-adds of the dense layer,
fitted by bench/fit_cost_model.py on the machine that cost_model.json names. Times of another machine differ,
but dense and sparse times differ alike, so that comparisons hold.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

# Microseconds of a call itself, which bench/fit_cost_model.py takes off what it fits; and what each thread
# after the first adds to the speed. Both chosen, not measured: dense and sparse are charged alike.
CALL_US = 5.0
THREAD_GAIN = 0.8


def predict(kind: str, name: str, work: float, sparsity: float, tokens: int, isa: str, threads: int) -> float:
    """Microseconds of one candidate; infinity if the model has no entry for it.

    kind   as in `Candidates`; name: of a dense implementation or a layout; work: n · k

    A convolution is predicted as a product: the cost of gathering x is left out on both sides.
    """
    table = _tables(isa).get(kind.replace("conv ", "linear "), {}).get(name)
    if table is None:
        return math.inf
    model = _model()
    by_tokens = [_interpolated(model["sparsities"], row, sparsity) for row in table]
    logs = [math.log(count) for count in model["tokens"]]
    cost = _interpolated(logs, by_tokens, math.log(tokens))
    return CALL_US + 1e-6 * cost * work * tokens / (1 + THREAD_GAIN * (threads - 1))


def origin() -> Mapping[str, Any]:
    """The machine and versions that the numbers come from."""
    return _model()["machine"]


def _tables(isa: str) -> Mapping[str, Mapping[str, Sequence[Sequence[float]]]]:
    """Those of this level, or of the widest one that was fitted."""
    tables = _model()["isa"]
    return tables.get(isa) or next(iter(tables.values()))


def _interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Linear in log y between the points; beyond them the nearest."""
    i = bisect_right(xs, x)
    if i == 0 or i == len(xs):
        return ys[0] if i == 0 else ys[-1]
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return math.exp((1 - share) * math.log(ys[i - 1]) + share * math.log(ys[i]))


@cache
def _model() -> Any:
    text = resources.files(__package__).joinpath("cost_model.json").read_text(encoding="utf-8")
    return json.loads(text)
