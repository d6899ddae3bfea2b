"""Benchmarks one linear layer, sparse against dense: checks results against fp64, then times them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from sparseinfer._int8 import rounded, row_peaks, row_scales
from sparseinfer._machine import last_level_cache_bytes
from sparseinfer._timing import Call, SelfTimed, Timing, interleave, num_threads
from sparseinfer.bench.candidate import DENSE, Candidate
from sparseinfer.bench.candidates import all_candidates
from sparseinfer.bench.peers.process import Opened
from sparseinfer.bench.peers.registry import PeerLayer, Peers
from sparseinfer.bench.problem import Expected, random_layer
from sparseinfer.bench.settings import Settings
from sparseinfer.formats.dtypes import WEIGHT_DTYPES

# Copies of the weights of a cold run fill the last-level cache this many times over, so that the next copy
# has been driven out even where the cache does not replace its oldest lines first. Chosen, not measured.
_COLD_CACHES = 2
# Smaller weights get no more copies than weights of this size. Chosen, not measured: it keeps their number at
# some thousands.
_LEAST_COLD_BYTES = 1 << 16


@dataclass(frozen=True)
class Cell:
    """A layer and the conditions it is timed under; all candidates of a cell take turns.

    `weights` is "warm" or "cold", `tokens` the rows m of x; `sparsity` the one asked for.
    """

    n: int
    k: int
    dtype: str
    threads: int
    weights: str
    tokens: int
    sparsity: float


@dataclass(frozen=True)
class Measurement(Cell):
    """One candidate of a cell, as `Candidate` describes it, and its times.

    us, median_us, spread   microseconds per call over `samples` samples, as `Timing` has them
    gflops         of the weights that are multiplied; eff_gflops: of the dense product
    gbps           GB/s, counting weights, x and y once each
    x_dense        time of the cell's fastest dense candidate over this one's
    """

    name: str
    kind: str
    layout: str
    nbytes: int
    us: float
    median_us: float
    samples: int
    gflops: float
    eff_gflops: float
    gbps: float
    x_dense: float = math.nan
    planned: bool = False
    spread: float = 0.0

    @classmethod
    def of(cls, cell: Cell, candidate: Candidate, timing: Timing, dense_us: float) -> Measurement:
        """`dense_us`: the time of the fastest dense candidate."""
        us, m, n, k = timing.min_us, cell.tokens, cell.n, cell.k
        return cls(
            **asdict(cell),
            name=candidate.name,
            kind=candidate.kind,
            layout=candidate.layout,
            nbytes=candidate.nbytes,
            us=us,
            median_us=timing.median_us,
            samples=timing.samples,
            gflops=2e-3 * m * candidate.multiplies / us,
            eff_gflops=2e-3 * m * n * k / us,
            gbps=1e-3 * (candidate.nbytes + candidate.dtype.itemsize * m * (n + k)) / us,
            x_dense=dense_us / us,
            planned=candidate.planned,
            spread=timing.spread,
        )


def run(
    settings: Settings,
    on_cell: Callable[[list[Measurement]], None] = lambda measured: None,
    peers: Peers | None = None,
) -> list[Measurement]:
    """Measures every cell; `on_cell` is given each as soon as it is done.

    peers   those of the settings, if they are running already

    Raises NumericsError, before timing a cell, if a candidate's result is wrong (see `problem.check`), and
    PeerError if an engine cannot run the layer. ValueError: an engine is not installed.
    """
    measured: list[Measurement] = []
    with torch.inference_mode(), nullcontext(peers) if peers else Peers(settings.peers) as running:
        for cell in _cells(settings, running):
            measured += cell
            on_cell(cell)
    return measured


def _cells(settings: Settings, peers: Peers) -> Iterator[list[Measurement]]:
    for (n, k), sparsity, dtype in product(settings.sizes, settings.sparsities, settings.dtypes):
        weight, bias = random_layer(n, k, sparsity, block=settings.block, seed=settings.seed)
        stored, scales = _stored(weight, dtype)
        if scales is None:
            weight, bias = stored, bias.to(stored.dtype)
        else:
            weight = stored * scales[:, None]
        for m in settings.tokens:
            x = torch.randn(m, k, generator=torch.Generator().manual_seed(settings.seed + 1)).to(weight.dtype)
            candidates = all_candidates(
                stored,
                bias,
                m,
                block=settings.block,
                isas=settings.isas,
                scales=scales,
                libraries=peers.libraries,
            )
            if "warm" in settings.weights:
                candidates += peers.layer_candidates(stored, bias, x, scales)
            expected = Expected(x, weight, bias)
            for candidate in candidates:
                if not candidate.own_clock:
                    expected.check(candidate, candidate.make()(x.to(candidate.dtype)))
            for state in settings.weights:
                timed = [c for c in candidates if not (c.own_clock and state == "cold")]
                calls = {c.name: _calls(c, x, cold=state == "cold") for c in timed if not c.own_clock}
                for threads in settings.threads:
                    with num_threads(threads):
                        times = _times(calls, timed, x, expected, settings.budget_s)
                    cell = Cell(n, k, dtype, threads, state, m, sparsity)
                    yield _measurements(cell, timed, times)


def _times(
    calls: Mapping[str, Sequence[Call]],
    candidates: Sequence[Candidate],
    x: Tensor,
    expected: Expected,
    budget_s: float,
) -> dict[str, Timing]:
    """Of `calls`, and of the candidates that are in another process, which are checked here: they compile the
    layer for a number of threads.
    """
    opened: dict[str, Opened] = {}
    try:
        for candidate in candidates:
            runner = candidate.make() if candidate.own_clock else None
            if isinstance(runner, PeerLayer):
                one = opened[candidate.name] = runner.opened(x)
                expected.check(candidate, one.result.reshape(x.shape[0], -1))
        turns: dict[str, Sequence[Call] | SelfTimed] = {**calls, **opened}
        return interleave(turns, budget_s=budget_s, before=x.sum)
    finally:
        for one in opened.values():
            one.close()


def _stored(weight: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """The weight in a dtype, and the scales of int8."""
    if WEIGHT_DTYPES[dtype] == torch.int8:
        scales = row_scales(row_peaks(weight), weight.dtype)
        return rounded(weight, scales), scales
    return weight.to(WEIGHT_DTYPES[dtype]), None


def _measurements(cell: Cell, candidates: Sequence[Candidate], times: dict[str, Timing]) -> list[Measurement]:
    dense_us = min(times[c.name].min_us for c in candidates if c.kind == DENSE)
    return [Measurement.of(cell, c, times[c.name], dense_us) for c in candidates]


def _calls(candidate: Candidate, x: Tensor, *, cold: bool) -> list[Call]:
    copies = 1
    if cold:
        nbytes = max(candidate.nbytes, _LEAST_COLD_BYTES)
        copies = max(2, math.ceil(_COLD_CACHES * last_level_cache_bytes() / nbytes))
    x = x.to(candidate.dtype)
    return [partial(candidate.make(), x) for _ in range(copies)]
