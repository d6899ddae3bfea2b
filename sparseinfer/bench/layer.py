"""One linear layer, sparse against dense: random weights, results checked against fp64, then timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer._machine import last_level_cache_bytes
from sparseinfer._timing import Call, Timing, interleave, num_threads
from sparseinfer.bench.candidates import DENSE, Entry, dense_entries, sparse_entries

# Copies of the weights of a cold run fill the last-level cache this many times over.
_COLD_CACHES = 2


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
WEIGHTS = ("warm", "cold")


@dataclass(frozen=True)
class Settings:
    """What `run` measures: every shape (n, k) at every sparsity, dtype, number of threads and of tokens m.

    `weights` are "warm" (in the cache where they fit) or "cold" (from memory). `isas` are instruction-set
    levels, none meaning the active one. `block` (r, c) draws the zeros in whole blocks. `budget_s` is the
    time spent on one cell.
    """

    shapes: Sequence[tuple[int, int]] = ((768, 768), (3072, 768), (768, 3072))
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95)
    tokens: Sequence[int] = (1, 16, 128)
    dtypes: Sequence[str] = ("f32",)
    threads: Sequence[int] = (1,)
    weights: Sequence[str] = ("warm",)
    block: tuple[int, int] | None = None
    isas: Sequence[str] = ()
    budget_s: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shapes", "sparsities", "tokens", "dtypes", "threads", "weights"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        for n, k in self.shapes:
            _expect(n >= 1 and k >= 1, "shapes", "n and k of at least 1", f"{n}x{k}")
            if self.block is not None:
                r, c = self.block
                _expect(r >= 1 and c >= 1, "block", "sizes of at least 1", f"{r}x{c}")
                _expect(n % r == 0 and k % c == 0, "block", f"a divisor of {n}x{k}", f"{r}x{c}")
        for sparsity in self.sparsities:
            _expect(0 <= sparsity < 1, "sparsities", "fractions in [0, 1)", sparsity)
        for m in self.tokens:
            _expect(m >= 1, "tokens", "at least 1", m)
        for dtype in self.dtypes:
            _expect(dtype in DTYPES, "dtypes", f"one of {', '.join(DTYPES)}", dtype)
        for state in self.weights:
            _expect(state in WEIGHTS, "weights", f"one of {', '.join(WEIGHTS)}", state)
        levels = ops.isa_levels()
        for isa in self.isas:
            _expect(isa in levels, "isas", f"one of {', '.join(levels)}", isa)
        for threads in self.threads:
            _expect(threads >= 1, "threads", "at least 1", threads)
        _expect(0 < self.budget_s < math.inf, "budget_s", "a positive number of seconds", self.budget_s)

    @property
    def cells(self) -> int:
        sizes = (self.shapes, self.sparsities, self.tokens, self.dtypes, self.threads, self.weights)
        return math.prod(len(size) for size in sizes)


@dataclass(frozen=True)
class Row:
    """One entry of one cell. `sparsity` is the one asked for; `gbps` counts weights, x and y once each."""

    n: int
    k: int
    dtype: str
    threads: int
    weights: str
    tokens: int
    sparsity: float
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
    x_dense: float = field(default=math.nan)


class NumericsError(RuntimeError):
    """A candidate's result is not the fp64 one within the rounding that its sum allows."""


def run(settings: Settings, on_cell: Callable[[list[Row]], None] = lambda rows: None) -> list[Row]:
    """Measures every cell; `on_cell` gets the rows of each as soon as it is done.

    Raises NumericsError, before any timing of that cell, when a candidate computes something else.
    """
    rows: list[Row] = []
    with torch.inference_mode():
        for cell in _cells(settings):
            rows += cell
            on_cell(cell)
    return rows


def random_layer(
    n: int, k: int, sparsity: float, *, block: tuple[int, int] | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Weight [n, k] with round(sparsity · numel) zeros (or zero blocks) at random places, and bias [n]."""
    generator = torch.Generator().manual_seed(seed)
    r, c = block or (1, 1)
    units = (n // r) * (k // c)
    mask = torch.ones(units, dtype=torch.bool)
    mask[torch.randperm(units, generator=generator)[: round(sparsity * units)]] = False
    weight = torch.randn(n, k, generator=generator)
    weight *= mask.view(n // r, k // c).repeat_interleave(r, 0).repeat_interleave(c, 1)
    return weight, torch.randn(n, generator=generator)


def check(entry: Entry, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raises NumericsError unless |y − ref| ≤ 2·eps·(nnz_row + 1)·(max|x|·max|w| + |bias|), ref in fp64.

    The bound is that of any order of summation in fp32, and holds for dense products too: adding a zero is
    exact. Where y is shorter than fp32 its own rounding comes on top; torch's own linear rounds twice there.
    """
    y = entry.make()(x.to(entry.dtype))
    shape = (x.shape[0], weight.shape[0])
    if y.shape != shape:
        raise NumericsError(f"{entry.name}: expected a result {list(shape)}, got {list(y.shape)}")
    reference = x.double() @ weight.double().t() + bias.double()
    terms = (weight != 0).sum(1) + 1
    magnitude = (x.abs().max() * weight.abs().max() + bias.abs()).double()
    allowed = 2 * torch.finfo(torch.float32).eps * terms * magnitude
    if entry.dtype != torch.float32:
        allowed = allowed + torch.finfo(entry.dtype).eps * (reference.abs() + bias.double().abs())
    # Not `> allowed`: a NaN must count as wrong.
    wrong = ~((y.double() - reference).abs() <= allowed)
    if wrong.any():
        i, j = wrong.nonzero()[0].tolist()
        expected = f"{reference[i, j]:.6g} ± {allowed.expand(shape)[i, j]:.1g}"
        size = f"n={shape[1]}, k={weight.shape[1]}, m={shape[0]}"
        raise NumericsError(f"{entry.name}: expected y[{i}, {j}] = {expected}, got {y[i, j]:.6g} ({size})")


def _cells(settings: Settings) -> Iterator[list[Row]]:
    for n, k in settings.shapes:
        for sparsity, dtype in product(settings.sparsities, settings.dtypes):
            weight, bias = random_layer(n, k, sparsity, block=settings.block, seed=settings.seed)
            weight, bias = weight.to(DTYPES[dtype]), bias.to(DTYPES[dtype])
            for m in settings.tokens:
                found = [
                    *dense_entries(weight, bias, m),
                    *sparse_entries(weight, bias, m, block=settings.block, isas=settings.isas),
                ]
                x = torch.randn(m, k, generator=torch.Generator().manual_seed(settings.seed + 1))
                x = x.to(weight.dtype)
                for entry in found:
                    check(entry, x, weight, bias)
                for state in settings.weights:
                    calls = {entry.name: _calls(entry, x, cold=state == "cold") for entry in found}
                    for threads in settings.threads:
                        with num_threads(threads):
                            times = interleave(calls, budget_s=settings.budget_s, before=x.sum)
                        dense_us = min(times[entry.name].min_us for entry in found if entry.kind == DENSE)
                        where = partial(_row, n=n, k=k, dtype=dtype, tokens=m, sparsity=sparsity)
                        cell = partial(where, dense_us=dense_us, threads=threads, weights=state)
                        yield [cell(entry, times[entry.name]) for entry in found]


def _calls(entry: Entry, x: Tensor, *, cold: bool) -> list[Call]:
    copies = 1
    if cold:
        copies = max(2, math.ceil(_COLD_CACHES * last_level_cache_bytes() / max(entry.nbytes, 1 << 16)))
    x = x.to(entry.dtype)
    return [partial(entry.make(), x) for _ in range(copies)]


def _row(
    entry: Entry,
    timing: Timing,
    *,
    dense_us: float,
    n: int,
    k: int,
    dtype: str,
    threads: int,
    weights: str,
    tokens: int,
    sparsity: float,
) -> Row:
    us = timing.min_us
    return Row(
        n=n,
        k=k,
        dtype=dtype,
        threads=threads,
        weights=weights,
        tokens=tokens,
        sparsity=sparsity,
        name=entry.name,
        kind=entry.kind,
        layout=entry.layout,
        nbytes=entry.nbytes,
        us=us,
        median_us=timing.median_us,
        samples=timing.samples,
        gflops=2e-3 * tokens * entry.multiplies / us,
        eff_gflops=2e-3 * tokens * n * k / us,
        gbps=1e-3 * (entry.nbytes + entry.dtype.itemsize * tokens * (n + k)) / us,
        x_dense=dense_us / us,
    )


def _expect(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got}")
