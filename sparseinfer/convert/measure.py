"""One layer's times on this machine: the dense ways and the packings, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.convert.weights import Weights
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import dense_candidates

_Key = TypeVar("_Key")

# More tokens than this take the same kernels in the same loops: times per token no longer change.
MAX_TOKENS = 256
_BUDGET_S = 0.03
_MIN_ROUNDS = 3


@dataclass(frozen=True)
class Times:
    """Microseconds per call with `tokens` tokens, by name of the dense way and by layout."""

    tokens: int
    dense: Mapping[str, float]
    sparse: Mapping[Layout, float]

    @property
    def dense_us(self) -> float:
        """Of the best dense."""
        return min(self.dense.values())

    def ratio(self, layout: Layout) -> float:
        """Sparse time over best dense time."""
        return self.sparse[layout] / self.dense_us


_cache: dict[tuple[object, ...], Times] = {}


def measure(
    weights: Weights, layouts: tuple[Layout, ...], packed: Callable[[Layout], Tensor], tokens: int
) -> Times:
    """Time the layer with `tokens` tokens; `packed(layout)` gives the weight in a layout.

    Layers of the same shape, dtype and sparsity (to 1 %) share one measurement per process, number of threads
    and instruction set.
    """
    machine = (torch.get_num_threads(), ops.active_isa())
    weight = weights.weight
    key = (*weight.shape, weight.dtype, round(weights.sparsity, 2), tokens, layouts, *machine)
    if key not in _cache:
        _cache[key] = _measure(weights, {layout: packed(layout) for layout in layouts}, tokens)
    return _cache[key]


@torch.inference_mode()
def _measure(weights: Weights, packed: Mapping[Layout, Tensor], m: int) -> Times:
    n, k = weights.weight.shape
    # Drawn from a generator of its own: convert leaves the caller's random numbers alone.
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(0)).to(weights.weight.dtype)
    dense = dense_candidates(weights.weight, weights.bias, tokens=m)
    calls: dict[str | Layout, Callable[[], object]] = {
        name: partial(linear, x) for name, linear in dense.items()
    }
    for layout, blob in packed.items():
        plan = ops.format_plan((ops.Bucket(None, 0, layout.kernel(m)),))
        calls[layout] = partial(ops.linear, x, [blob], weights.bias, n, plan, "none")
    best = _interleave(calls)
    dense_us = {name: us for name, us in best.items() if isinstance(name, str)}
    return Times(m, dense_us, {layout: us for layout, us in best.items() if isinstance(layout, Layout)})


def _interleave(calls: Mapping[_Key, Callable[[], object]]) -> dict[_Key, float]:
    """Fastest time of each call in microseconds; every round runs every call, so noise meets all alike."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    end = time.perf_counter() + _BUDGET_S * len(calls)
    rounds = 0
    while rounds < _MIN_ROUNDS or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call()
            best[name] = min(best[name], (time.perf_counter_ns() - start) / 1e3)
        rounds += 1
    return best
