"""Plans one product: whether it becomes sparse, and which layout serves which number of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparseinfer import ops
from sparseinfer.convert.candidates.base import Candidates
from sparseinfer.convert.options import COMPACT, SPEED
from sparseinfer.convert.timing.timer import Timer
from sparseinfer.convert.timing.times import Times
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN, PREPACKED, SEMI_STRUCTURED

# Dense ways that hold the weight in another form, and replace the plain layer where they are faster by more
# than noise: their time is to be less than this share of its. Chosen, not measured.
_HELD_OTHERWISE = (PREPACKED, SEMI_STRUCTURED)
_SHARE_THAT_PAYS = 0.97


@dataclass(frozen=True)
class Plan:
    """The decision for one product. Without `buckets` it stays dense, because of `reason`.

    times      one entry per planned token count
    chosen     the layout for each of these, if any was tried
    packings   those used by the buckets, each one packing or one per group of channels
    dense_way  the dense implementation to use if it stays dense; PLAIN: the unchanged layer
    """

    reason: str
    times: tuple[Times, ...] = ()
    chosen: tuple[Layout, ...] = ()
    packings: tuple[tuple[Tensor, ...], ...] = ()
    buckets: tuple[ops.Bucket, ...] = ()
    dense_way: str = PLAIN

    @property
    def is_sparse(self) -> bool:
        return bool(self.buckets)

    @property
    def dense_kind(self) -> str:
        """The name that `explain` shows for the dense implementation."""
        return {PLAIN: "dense", PREPACKED: "prepacked"}.get(self.dense_way, self.dense_way)


def plan(candidates: Candidates, tokens: Sequence[int], timer: Timer, memory: float) -> Plan:
    """Decide for one product with these numbers of tokens, all weighted equally.

    Each bucket gets its fastest layout, as long as all packings together take at most `memory` times the
    dense weight's bytes. The layer becomes sparse if the mean over the token counts of sparse time / best
    dense time is below 1. COMPACT: only the layout of fewest bytes, if it saves any.
    """
    counts = sorted(set(tokens))
    if memory == COMPACT:
        return _compact_or_dense(candidates, counts, timer)
    sparsity = candidates.weights.sparsity
    if sparsity < candidates.min_sparsity:
        reason = f"too dense to win: sparsity {sparsity:.2f}, tried from {candidates.min_sparsity}"
        return _dense(reason, tuple(timer(candidates, (), m) for m in counts))

    tried = {m: candidates.layouts(m) for m in counts}
    times = {m: timer(candidates, tried[m], m) for m in counts}
    chosen = _cheapest(candidates, times, SPEED)
    limit = memory * candidates.dense_weights.weight.nbytes
    if chosen is None or _nbytes(candidates, set(chosen.values())) > limit:
        # The best of each bucket are too much together: look for those that serve several.
        every = tuple(dict.fromkeys((*itertools.chain(*tried.values()), candidates.compact_layout())))
        times = {m: timer(candidates, every, m) for m in counts}
        chosen = _cheapest(candidates, times, memory)
    if chosen is None:
        return _dense(f"no layout takes at most {memory:g} of the dense bytes", tuple(times.values()))
    by_count = [chosen[m] for m in counts]
    ratios = [times[m].ratio(layout) for m, layout in zip(counts, by_count, strict=True)]
    if sum(ratios) >= len(ratios):
        reason = _dense_is_faster(list(times.values()), by_count)
        return _dense(reason, tuple(times.values()), tuple(by_count))
    used = list(dict.fromkeys(by_count))
    return Plan(
        _gains(ratios),
        tuple(times.values()),
        tuple(by_count),
        tuple(candidates.packed(layout) for layout in used),
        _buckets(candidates, chosen, used),
    )


def compact_plan(candidates: Candidates, reason: str = "", times: tuple[Times, ...] = ()) -> Plan:
    """A plan with only the compact layout, for any number of tokens."""
    layout = candidates.compact_layout()
    packed = candidates.packed(layout)
    return Plan(reason, times, (layout,) * len(times), (packed,), candidates.buckets(layout))


def _dense(reason: str, times: tuple[Times, ...], chosen: tuple[Layout, ...] = ()) -> Plan:
    return Plan(reason, times, chosen, dense_way=_dense_way(times))


def _dense_way(times: Sequence[Times]) -> str:
    for way in _HELD_OTHERWISE:
        shares = [time.dense[way] / time.dense[PLAIN] for time in times if way in time.dense]
        if shares and sum(shares) < _SHARE_THAT_PAYS * len(shares):
            return way
    return PLAIN


def _cheapest(candidates: Candidates, times: Mapping[int, Times], memory: float) -> dict[int, Layout] | None:
    """Token count -> layout, the same for all of a bucket, of the smallest sum of ratios within `memory`."""
    groups = list(_by_bucket(list(times), candidates.limits).values())
    by_cost = []  # for each bucket its layouts and what they cost, the best first
    for counts in groups:
        # In the order of the layouts: of several that are equally fast it is always the same that is chosen.
        common = [
            layout for layout in times[counts[0]].sparse if all(layout in times[m].sparse for m in counts)
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


def _compact_or_dense(candidates: Candidates, counts: Sequence[int], timer: Timer) -> Plan:
    layout = candidates.compact_layout()
    nbytes, dense_nbytes = _nbytes(candidates, {layout}), candidates.dense_weights.weight.nbytes
    if nbytes >= dense_nbytes:
        reason = f"dense is smaller: {dense_nbytes:,} bytes against {nbytes:,} ({layout})"
        return _dense(reason, tuple(timer(candidates, (), m) for m in counts))
    times = tuple(timer(candidates, (layout,), m) for m in counts)
    gains = _gains([time.ratio(layout) for time in times])
    return compact_plan(candidates, f"{nbytes / dense_nbytes:.2f} of the dense bytes, {gains}", times)


def _gains(ratios: Sequence[float]) -> str:
    return " / ".join(f"{1 / ratio:.1f}x" for ratio in ratios) + " dense"


def _dense_is_faster(times: Sequence[Times], chosen: Sequence[Layout]) -> str:
    """Names the token count at which the dense layer wins by most."""
    time, layout = max(zip(times, chosen, strict=True), key=lambda pair: pair[0].ratio(pair[1]))
    return (
        f"dense is faster: {time.dense_us:.1f} us against {time.sparse[layout]:.1f} us "
        f"({layout}) at m={time.tokens}"
    )
