"""Plans one product: whether it becomes sparse, and which layout serves which number of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.convert.candidates.base import Candidate, Candidates, Timed
from sparseinfer.convert.options import COMPACT, SPEED
from sparseinfer.convert.timing.times import Times
from sparseinfer.convert.ways import EQUAL, Way, best, by_bucket, dense_way, nbytes_of, sparse_way
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import DENSE_WAYS, PLAIN

# As `Timer`: candidates, layouts and a number of tokens -> times.
TimerFn: TypeAlias = Callable[[Timed, Iterable[Layout], int], Times]

# Dense ways that a layer can have; others only count as what it is compared with. Those that round come after
# sparse layouts that do not: nothing is rounded that does not pay.
_HELD = tuple(name for name, way in DENSE_WAYS.items() if way.rounds_to is None)
ROUNDING = tuple(name for name, way in DENSE_WAYS.items() if way.rounds_to is not None)


@dataclass(frozen=True)
class Plan:
    """The decision for one product. Without `buckets` it stays dense, because of `reason`.

    times      one entry per planned token count
    chosen     what was tried for each of these, if anything was: a layout, or a dense way beside layouts
    packings   those used by the buckets, each one packing or one per group of channels
    dense_way  the dense implementation to use if it stays dense; PLAIN: the unchanged layer
    dense_at   numbers of the buckets that `dense_way` serves, with a dense copy of the weight
    dtype      of the weights in the packings; None: dense
    """

    reason: str
    times: tuple[Times, ...] = ()
    chosen: tuple[Candidate, ...] = ()
    packings: tuple[tuple[Tensor, ...], ...] = ()
    buckets: tuple[ops.Bucket, ...] = ()
    dense_way: str = PLAIN
    dense_at: tuple[int, ...] = ()
    dtype: torch.dtype | None = None

    @property
    def is_sparse(self) -> bool:
        return bool(self.buckets)

    @property
    def dense_kind(self) -> str:
        """The name that `explain` shows for the dense implementation."""
        return DENSE_WAYS[self.dense_way].kind

    @property
    def kernels(self) -> tuple[tuple[int | None, str], ...]:
        """(max_tokens, kernel or dense way) of each bucket."""
        return tuple(
            (bucket.max_tokens, self.dense_way if i in self.dense_at else bucket.kernel)
            for i, bucket in enumerate(self.buckets)
        )


def plan(
    candidates: Timed, tokens: Sequence[int], timer: TimerFn, memory: float, beside: Sequence[str] = ()
) -> Plan:
    """Decide for one product with these numbers of tokens.

    At none of them is the plan slower than the best dense implementation, if any way to compute the product
    is not; see `ways`. Each bucket gets its fastest layout, as long as all that the layer holds takes at most
    `memory` times the dense weight's bytes. COMPACT: only the layout of fewest bytes, if it saves any.

    All packings of a layer hold the same weights: of one dtype, the first allowed one that pays.

    beside   dense implementations, one of which may serve some of the buckets if the dense weight, too, is
             within `memory`
    """
    counts = sorted(set(tokens))
    if memory == COMPACT:
        return _compact_or_dense(candidates, counts, timer)
    variants = [each for each in candidates.variants if each.weights.sparsity >= each.min_sparsity]
    if not variants:
        sparsity, tried_from = candidates.weights.sparsity, candidates.variants[0].min_sparsity
        reason = f"too dense to win: sparsity {sparsity:.2f}, tried from {tried_from}"
        return dense_plan(_timed(candidates, dict.fromkeys(counts, ()), timer), reason)

    tried = {m: tuple(dict.fromkeys(_each(variant.layouts(m) for variant in variants))) for m in counts}
    times = _timed(candidates, tried, timer)
    fastest, limit = _sparse_ways(variants, times, SPEED), memory * candidates.dense_weights.weight.nbytes
    if not fastest or best(fastest).nbytes > limit:
        # The best of each bucket are too much together: look for those that serve several.
        compact = (variant.compact_layout() for variant in variants)
        every = tuple(dict.fromkeys((*_each(tried.values()), *compact)))
        times = _timed(candidates, dict.fromkeys(counts, every), timer)
    sparse = _sparse_ways(variants, times, memory, beside if memory > 1 else ())
    if not sparse:
        return dense_plan(times, f"no layout takes at most {memory:g} of the dense bytes")
    exact, rounding = _dense_ways(times)
    # In the order of what they round.
    taken = best([*exact, *sparse[:1], *rounding, *sparse[1:]])
    if taken.variant is not None:
        return _sparse_plan(taken, taken.variant, times)
    rival = best(sparse)
    reason = _dense_is_faster(times, rival) + _if_both(rival, times, beside, memory)
    return dense_plan(times, reason, tuple(rival.by_count.values()))


def single_plan(
    candidates: Candidates, layout: Layout, reason: str = "", times: tuple[Times, ...] = ()
) -> Plan:
    """A plan with only this layout, for any number of tokens."""
    packed = candidates.packed(layout)
    buckets, dtype = candidates.buckets(layout), candidates.weights.weight.dtype
    return Plan(reason, times, (layout,) * len(times), (packed,), buckets, dtype=dtype)


def dense_plan(times: tuple[Times, ...], reason: str, tried: tuple[Candidate, ...] = ()) -> Plan:
    """The best plan that is dense at all token counts."""
    exact, rounding = _dense_ways(times)
    (name,) = best([*exact, *rounding]).dense
    return Plan(reason, times, tried, dense_way=name)


def _dense_ways(times: Sequence[Times]) -> tuple[list[Way], list[Way]]:
    """Those that round nothing, and those that do."""
    exact, rounding = (
        [dense_way(name, times) for name in names if all(name in time.dense for time in times)]
        for names in (_HELD, ROUNDING)
    )
    return exact, rounding


def _sparse_ways(
    variants: Sequence[Candidates], times: Sequence[Times], memory: float, beside: Sequence[str] = ()
) -> list[Way]:
    ways = (sparse_way(variant, times, memory, beside) for variant in variants)
    return [way for way in ways if way is not None]


def _sparse_plan(way: Way, candidates: Candidates, times: tuple[Times, ...]) -> Plan:
    groups, used = by_bucket(list(way.by_count), candidates.limits), way.layouts
    buckets: list[ops.Bucket] = []
    dense_at: list[int] = []
    for limit, counts in zip([*list(groups)[:-1], None], groups.values(), strict=True):
        each = way.by_count[counts[-1]]
        if isinstance(each, str):
            # Where there is no dense copy, as on a GPU, any packing serves.
            dense_at.append(len(buckets))
            each = used[0]
        buckets.append(ops.Bucket(limit, used.index(each), candidates.kernel(each, counts[-1])))
    return Plan(
        _gains(way.ratios) + (", with a dense copy" if dense_at else ""),
        times,
        tuple(way.by_count.values()),
        tuple(candidates.packed(layout) for layout in used),
        tuple(buckets),
        way.dense[0] if dense_at else PLAIN,
        tuple(dense_at),
        candidates.weights.weight.dtype,
    )


def _timed(candidates: Timed, layouts: Mapping[int, tuple[Layout, ...]], timer: TimerFn) -> tuple[Times, ...]:
    return tuple(timer(candidates, of_count, m) for m, of_count in layouts.items())


def _each(layouts: Iterable[Iterable[Layout]]) -> Iterable[Layout]:
    return chain.from_iterable(layouts)


def _compact_or_dense(candidates: Timed, counts: Sequence[int], timer: TimerFn) -> Plan:
    smallest = min(candidates.variants, key=_compact_nbytes)
    layout, nbytes = smallest.compact_layout(), _compact_nbytes(smallest)
    dense_nbytes = candidates.dense_weights.weight.nbytes
    if nbytes >= dense_nbytes:
        reason = f"dense is smaller: {dense_nbytes:,} bytes against {nbytes:,} ({layout})"
        return dense_plan(_timed(candidates, dict.fromkeys(counts, ()), timer), reason)
    times = _timed(candidates, dict.fromkeys(counts, (layout,)), timer)
    gains = _gains([time.ratio(layout) for time in times])
    return single_plan(smallest, layout, f"{nbytes / dense_nbytes:.2f} of the dense bytes, {gains}", times)


def _compact_nbytes(candidates: Candidates) -> int:
    return nbytes_of(candidates, [candidates.compact_layout()])


def _gains(ratios: Sequence[float]) -> str:
    return " / ".join(f"{1 / ratio:.1f}x" for ratio in ratios) + " dense"


def _dense_is_faster(times: Sequence[Times], rival: Way) -> str:
    """Names the token count at which the dense layer wins by most."""
    time = max(times, key=lambda time: time.ratio(rival.by_count[time.tokens]))
    layout = rival.by_count[time.tokens]
    us = f"{time.dense_us:.1f} us against {time.us(layout):.1f} us"
    return f"dense is faster: {us} ({layout}) at m={time.tokens}"


def _if_both(rival: Way, times: Sequence[Times], beside: Sequence[str], memory: float) -> str:
    """What would be gained elsewhere if `memory` let the layer hold the dense weight, too."""
    if rival.variant is None or min(rival.ratios) > 1 / EQUAL or not beside:
        return ""
    both = sparse_way(rival.variant, times, SPEED, beside)
    if both is None or both.worst > EQUAL or not both.dense:
        return ""
    m, ratio = min(zip(both.by_count, both.ratios, strict=True), key=lambda pair: pair[1])
    needed = both.nbytes / rival.variant.dense_weights.weight.nbytes
    return f"; {1 / ratio:.1f}x at m={m} with memory={math.ceil(10 * needed) / 10:g}, which holds both"
