"""Plans one product: whether it becomes sparse, and which layout serves which number of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.convert.candidates.base import Candidates, Timed
from sparseinfer.convert.options import COMPACT, SPEED
from sparseinfer.convert.timing.timer import Timer
from sparseinfer.convert.timing.times import Times
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import DENSE_WAYS, PLAIN

# Dense ways that hold the weight in another form, and replace the plain layer where they are faster by more
# than noise: their time is to be less than this share of its. Chosen, not measured.
_REARRANGING = tuple(name for name, way in DENSE_WAYS.items() if way.rearranges)
_SHARE_THAT_PAYS = 0.97
# Those that round, where that is allowed; nothing is rounded, dense or sparse, that does not pay either.
_ROUNDING = tuple(name for name, way in DENSE_WAYS.items() if way.rounds_to is not None)


@dataclass(frozen=True)
class Plan:
    """The decision for one product. Without `buckets` it stays dense, because of `reason`.

    times      one entry per planned token count
    chosen     the layout for each of these, if any was tried
    packings   those used by the buckets, each one packing or one per group of channels
    dense_way  the dense implementation to use if it stays dense; PLAIN: the unchanged layer
    dtype      of the weights in the packings; None: dense
    """

    reason: str
    times: tuple[Times, ...] = ()
    chosen: tuple[Layout, ...] = ()
    packings: tuple[tuple[Tensor, ...], ...] = ()
    buckets: tuple[ops.Bucket, ...] = ()
    dense_way: str = PLAIN
    dtype: torch.dtype | None = None

    @property
    def is_sparse(self) -> bool:
        return bool(self.buckets)

    @property
    def dense_kind(self) -> str:
        """The name that `explain` shows for the dense implementation."""
        return DENSE_WAYS[self.dense_way].kind


@dataclass(frozen=True)
class _Dense:
    """How a layer would stay dense: in one way for all numbers of tokens.

    cost    what that costs over all token counts, in times of the best way that rounds nothing
    exact   times with only such ways; costs of sparse layouts are ratios to these
    times   to report: with this way alone, if it rounds
    """

    way: str
    cost: float
    exact: tuple[Times, ...]
    times: tuple[Times, ...]

    def plan(self, reason: str, chosen: tuple[Layout, ...] = ()) -> Plan:
        return Plan(reason, self.times, chosen, dense_way=self.way)


@dataclass(frozen=True)
class _Choice:
    """The fastest layouts of candidates, by number of tokens, and the sum of their ratios to dense."""

    candidates: Candidates
    layouts: Mapping[int, Layout]
    cost: float

    @property
    def nbytes(self) -> int:
        return _nbytes(self.candidates, set(self.layouts.values()))


def plan(candidates: Timed, tokens: Sequence[int], timer: Timer, memory: float) -> Plan:
    """Decide for one product with these numbers of tokens, all weighted equally.

    Each bucket gets its fastest layout, as long as all packings together take at most `memory` times the
    dense weight's bytes. The layer becomes sparse if the mean over the token counts of sparse time / best
    dense time is below 1. COMPACT: only the layout of fewest bytes, if it saves any.

    All packings of a layer hold the same weights: of one dtype, the first allowed one that pays.
    """
    counts = sorted(set(tokens))
    if memory == COMPACT:
        return _compact_or_dense(candidates, counts, timer)
    variants = [each for each in candidates.variants if each.weights.sparsity >= each.min_sparsity]
    if not variants:
        sparsity, tried_from = candidates.weights.sparsity, candidates.variants[0].min_sparsity
        reason = f"too dense to win: sparsity {sparsity:.2f}, tried from {tried_from}"
        return _timed(candidates, dict.fromkeys(counts, ()), timer).plan(reason)

    tried = {m: tuple(dict.fromkeys(_each(variant.layouts(m) for variant in variants))) for m in counts}
    dense = _timed(candidates, tried, timer)
    chosen = _chosen(variants, dense.exact, SPEED)
    limit = memory * candidates.dense_weights.weight.nbytes
    if chosen is None or chosen.nbytes > limit:
        # The best of each bucket are too much together: look for those that serve several.
        compact = (variant.compact_layout() for variant in variants)
        every = tuple(dict.fromkeys((*_each(tried.values()), *compact)))
        dense = _timed(candidates, dict.fromkeys(counts, every), timer)
        chosen = _chosen(variants, dense.exact, memory)
    if chosen is None:
        return dense.plan(f"no layout takes at most {memory:g} of the dense bytes")
    by_count, times = tuple(chosen.layouts[m] for m in counts), dense.times
    if chosen.cost >= dense.cost:
        return dense.plan(_dense_is_faster(times, by_count), by_count)
    used = list(dict.fromkeys(by_count))
    return Plan(
        _gains([time.ratio(layout) for time, layout in zip(times, by_count, strict=True)]),
        times,
        by_count,
        tuple(chosen.candidates.packed(layout) for layout in used),
        _buckets(chosen.candidates, chosen.layouts, used),
        dtype=chosen.candidates.weights.weight.dtype,
    )


def compact_plan(candidates: Candidates, reason: str = "", times: tuple[Times, ...] = ()) -> Plan:
    """A plan with only the compact layout, for any number of tokens."""
    layout = candidates.compact_layout()
    packed = candidates.packed(layout)
    buckets, dtype = candidates.buckets(layout), candidates.weights.weight.dtype
    return Plan(reason, times, (layout,) * len(times), (packed,), buckets, dtype=dtype)


def _dense_way(times: Sequence[Times]) -> str:
    """The one that rounds nothing."""
    for way in _REARRANGING:
        if _pays(way, PLAIN, times):
            return way
    return PLAIN


def _pays(way: str, other: str, times: Sequence[Times]) -> bool:
    shares = [time.dense[way] / time.dense[other] for time in times if way in time.dense]
    return bool(shares) and sum(shares) < _SHARE_THAT_PAYS * len(shares)


def _timed(candidates: Timed, layouts: Mapping[int, tuple[Layout, ...]], timer: Timer) -> _Dense:
    """The times for each token count, and how the layer would stay dense."""
    times = [timer(candidates, of_count, m) for m, of_count in layouts.items()]
    exact = tuple(replace(time, dense=_without(_ROUNDING, time.dense)) for time in times)
    way = _dense_way(exact)
    for rounding in _ROUNDING:
        if _pays(rounding, way, times):
            alone = tuple(replace(time, dense={rounding: time.dense[rounding]}) for time in times)
            costs = [a.dense_us / e.dense_us for a, e in zip(alone, exact, strict=True)]
            return _Dense(rounding, sum(costs), exact, alone)
    return _Dense(way, len(times), exact, exact)


def _without(names: Sequence[str], us: Mapping[str, float]) -> dict[str, float]:
    return {name: us[name] for name in us if name not in names}


def _chosen(variants: Sequence[Candidates], times: Sequence[Times], memory: float) -> _Choice | None:
    """Of the first variant, unless a later one, whose weights are rounded, is faster by more than noise."""
    best: _Choice | None = None
    by_tokens = {time.tokens: time for time in times}
    for variant in variants:
        layouts = _cheapest(variant, by_tokens, memory)
        if layouts is not None:
            cost = sum(by_tokens[m].ratio(layout) for m, layout in layouts.items())
            if best is None or cost < _SHARE_THAT_PAYS * best.cost:
                best = _Choice(variant, layouts, cost)
    return best


def _each(layouts: Iterable[Iterable[Layout]]) -> Iterable[Layout]:
    return itertools.chain.from_iterable(layouts)


def _cheapest(candidates: Candidates, times: Mapping[int, Times], memory: float) -> dict[int, Layout] | None:
    """Token count -> layout, the same for all of a bucket, of the smallest sum of ratios within `memory`."""
    groups = list(_by_bucket(list(times), candidates.limits).values())
    by_cost = []  # for each bucket its layouts and what they cost, the best first
    for counts in groups:
        # In the order of the layouts: of several that are equally fast it is always the same that is chosen.
        common = [
            layout
            for layout in times[counts[0]].sparse
            if candidates.holds(layout) and all(layout in times[m].sparse for m in counts)
        ]
        cost = {layout: sum(times[m].ratio(layout) for m in counts) for layout in common}
        by_cost.append(sorted(cost.items(), key=lambda item: item[1]))
    limit = memory * candidates.dense_weights.weight.nbytes
    best: tuple[float, tuple[Layout, ...]] | None = None
    for combination in itertools.product(*by_cost):
        total = sum(cost for _, cost in combination)
        layouts = tuple(layout for layout, _ in combination)
        if best is not None and total >= best[0]:
            continue
        if len({layout.format for layout in layouts}) > 1:  # a layer holds one, which its state_dict shows
            continue
        if memory < SPEED and _nbytes(candidates, set(layouts)) > limit:
            continue
        best = total, layouts
    if best is None:
        return None
    return {m: layout for counts, layout in zip(groups, best[1], strict=True) for m in counts}


def _nbytes(candidates: Candidates, layouts: set[Layout]) -> int:
    return sum(packed.nbytes for layout in layouts for packed in candidates.packed(layout))


def _by_bucket(counts: Sequence[int], limits: Sequence[int | None]) -> dict[int | None, list[int]]:
    """Token counts in each bucket that has any, in the order of their limits."""
    buckets: dict[int | None, list[int]] = {limit: [] for limit in limits}
    for m in counts:
        buckets[next(limit for limit in limits if limit is None or m <= limit)].append(m)
    return {limit: group for limit, group in buckets.items() if group}


def _buckets(
    candidates: Candidates, chosen: Mapping[int, Layout], used: Sequence[Layout]
) -> tuple[ops.Bucket, ...]:
    groups = _by_bucket(list(chosen), candidates.limits)
    limits = [*list(groups)[:-1], None]
    return tuple(
        ops.Bucket(limit, used.index(chosen[counts[-1]]), candidates.kernel(chosen[counts[-1]], counts[-1]))
        for limit, counts in zip(limits, groups.values(), strict=True)
    )


def _compact_or_dense(candidates: Timed, counts: Sequence[int], timer: Timer) -> Plan:
    smallest = min(candidates.variants, key=_compact_nbytes)
    layout, nbytes = smallest.compact_layout(), _compact_nbytes(smallest)
    dense_nbytes = candidates.dense_weights.weight.nbytes
    if nbytes >= dense_nbytes:
        reason = f"dense is smaller: {dense_nbytes:,} bytes against {nbytes:,} ({layout})"
        return _timed(candidates, dict.fromkeys(counts, ()), timer).plan(reason)
    times = _timed(candidates, dict.fromkeys(counts, (layout,)), timer).times
    gains = _gains([time.ratio(layout) for time in times])
    return compact_plan(smallest, f"{nbytes / dense_nbytes:.2f} of the dense bytes, {gains}", times)


def _compact_nbytes(candidates: Candidates) -> int:
    return _nbytes(candidates, {candidates.compact_layout()})


def _gains(ratios: Sequence[float]) -> str:
    return " / ".join(f"{1 / ratio:.1f}x" for ratio in ratios) + " dense"


def _dense_is_faster(times: Sequence[Times], chosen: Sequence[Layout]) -> str:
    """Names the token count at which the dense layer wins by most."""
    time, layout = max(zip(times, chosen, strict=True), key=lambda pair: pair[0].ratio(pair[1]))
    return (
        f"dense is faster: {time.dense_us:.1f} us against {time.sparse[layout]:.1f} us "
        f"({layout}) at m={time.tokens}"
    )
