"""Predicts times on a CPU, for convert(measure=False) and for what the time budget does not cover.

The time of a kernel is a sum of three terms and that of the call:

    bytes      reading the packing, x and y, at the rate of the cache that holds them
    decode     finding the x that a stored value meets, for each pass over the tokens, in cycles
    multiply   steps at the rate of the unit that does them

What a byte, a value and a step cost each kernel is fitted by bench/fit_cost_model.py (cost_model.json), or,
marked there as "computed", follows from the cycles that its loop takes on paper; how fast caches, clock and
units are is measured on this machine (sparseinfer._rates). Dense ways decode nothing, and have costs for each
of some numbers of tokens, because libraries switch between kernels.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from sparseinfer._rates import Rates, rates
from sparseinfer.ops import isa_levels, kernels

# What each thread after the first adds to the speed. Chosen, not measured: dense and sparse alike.
THREAD_GAIN = 0.8

# A product of bf16 runs on the first of these units that the machine has, all others on FMA.
_BF16_UNITS = ("tile_bf16", "dot", "fma")


@dataclass(frozen=True)
class Case:
    """One product. `cold`: the weights are read from memory, not from a cache."""

    n: int
    k: int
    sparsity: float
    tokens: int
    threads: int = 1
    cold: bool = False


@dataclass(frozen=True)
class Shape:
    """What a kernel does for how many tokens, values and rows; chosen by the fit.

    pass_tokens    tokens for which weights are decoded once
    vector_tokens  a multiple of so many tokens is computed
    x_tokens       tokens whose x is read again for each row
    group          rows that share a look-up of x
    counts_bytes   padding is stored like values, so that bytes count them; else values are those not zero
    fills_zeros    zeros are multiplied, too: weights are expanded into whole tiles
    """

    pass_tokens: int = 1
    vector_tokens: int = 1
    x_tokens: int = 1
    group: int = 1
    counts_bytes: bool = False
    fills_zeros: bool = False


# The costs that a row of the model has, in the order of `features`.
COSTS = ("call", "packing", "far packing", "x and y", "x again", "positions", "groups", "values", "steps")
DENSE_COSTS = ("call", "weight", "far weight", "steps")


def features(case: Case, shape: Shape, nbytes: float, unit: str, speed: Rates) -> tuple[float, ...]:
    """Microseconds of each of COSTS, if a byte took the time that reading it takes, and so on."""
    n, k, m = case.n, case.k, case.tokens
    values = nbytes if shape.counts_bytes else (1 - case.sparsity) * n * k
    passes = math.ceil(m / shape.pass_tokens)
    multiplied = math.ceil(m / shape.vector_tokens) * shape.vector_tokens
    near, cycles = speed.reads[0][1], 1e-3 / speed.clock
    x_bytes, both_bytes = 4 * k * min(m, shape.x_tokens), 4 * m * (k + n)
    x_passes = math.ceil(m / shape.x_tokens)
    # Beyond the time that x takes from the nearest cache, which is part of a step.
    again = max(0.0, 1 / speed.read_rate(x_bytes) - 1 / near) * x_bytes * x_passes * n
    return (
        1.0,
        *_weight_us(case, nbytes, speed),
        1e-3 * both_bytes / speed.read_rate(both_bytes),
        1e-3 * again,
        n * k * passes * cycles,
        n * k * (1 - case.sparsity**shape.group) * passes * cycles,
        values * passes * cycles,
        1e-3 * (n * k if shape.fills_zeros else values) * multiplied / speed.units[unit],
    )


def dense_features(case: Case, nbytes: float, unit: str, speed: Rates) -> tuple[float, ...]:
    """The same for DENSE_COSTS."""
    steps = 1e-3 * case.n * case.k * case.tokens / speed.units[unit]
    return (1.0, *_weight_us(case, nbytes, speed), steps)


def _weight_us(case: Case, nbytes: float, speed: Rates) -> tuple[float, float]:
    """Of all bytes, and of those that the private caches do not hold: some kernels wait for these."""
    rate = speed.reads[-1][1] if case.cold else speed.read_rate(nbytes / case.threads)
    near = 0 if case.cold else speed.private_bytes
    return 1e-3 * nbytes / rate, 1e-3 * max(0.0, nbytes - near) / rate


def predict_sparse(kernel: str, panel: int, unit: str, case: Case, isa: str) -> float:
    """Microseconds of a kernel, by its base name, at a level of this machine; infinity if it is unknown."""
    row = _row(f"{kernel}_p{panel}" if panel else kernel, isa)
    speed = rates(isa)
    if row is None or unit not in speed.units:
        return math.inf
    model = _model()
    nbytes = case.n * case.k * _interpolated(model["sparsities"], row["bytes"], case.sparsity)
    us = features(case, Shape(**row["shape"]), nbytes, unit, speed)
    return _sum(us, row["costs"], case)


def predict_dense(way: str, dtype: str, case: Case) -> float:
    """Microseconds of a dense way; infinity if the model has none. Libraries use the machine's best level."""
    row = _model()["dense"].get(f"{dtype} {way}")
    if row is None:
        return math.inf
    speed = rates(isa_levels()[-1])
    unit = dense_unit(dtype, speed)
    us = dense_features(case, case.n * case.k * (4 if dtype == "float32" else 2), unit, speed)
    # What was fitted where multiplying takes longest says nothing of a unit so fast that reading does.
    least = us[1] / (1 + THREAD_GAIN * (case.threads - 1))
    by_tokens = [max(_sum(us, costs, case), least) / case.tokens for costs in row]
    logs = [math.log(count) for count in _model()["tokens"]]
    return case.tokens * _interpolated(logs, by_tokens, math.log(case.tokens))


def dense_unit(dtype: str, speed: Rates) -> str:
    """The unit that multiplies in a dense product."""
    return next(unit for unit in _BF16_UNITS if unit in speed.units) if dtype == "bfloat16" else "fma"


def origin() -> Sequence[Mapping[str, Any]]:
    """The machines and versions that the costs were fitted on."""
    machines: Sequence[Mapping[str, Any]] = _model()["machines"]
    return machines


def _sum(us: Sequence[float], costs: Sequence[float], case: Case) -> float:
    call, *rest = (each * cost for each, cost in zip(us, costs, strict=True))
    return call + sum(rest) / (1 + THREAD_GAIN * (case.threads - 1))


def _row(name: str, isa: str) -> Any:
    """That of this level; else of the next one above it that has the kernel, else of the next one below.

    If none of this build's levels has it, that of another machine's widest level.
    """
    tables = _model()["kernels"]
    levels = list(dict.fromkeys(kernel.isa for kernel in kernels()))
    at = levels.index(isa)
    nearest = (*levels[at:], *reversed(levels[:at]), *reversed(tables))
    rows = (tables.get(level, {}).get(name) for level in nearest)
    return next((row for row in rows if row is not None), None)


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
