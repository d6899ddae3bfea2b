"""Which layers become sparse, and which layout serves how many tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparseinfer import ops
from sparseinfer.convert.cases import Case
from sparseinfer.convert.measure import Timer, Times
from sparseinfer.convert.options import COMPACT, SPEED
from sparseinfer.ops import Layout
from sparseinfer.ops.dense import PLAIN, PREPACKED, SEMI_STRUCTURED

# The prepacked dense layer replaces the plain one only for a gain that is more than noise.
_PREPACK_GAIN = 0.97


@dataclass(frozen=True)
class Plan:
    """The decision for one layer. No `buckets`: it stays dense, for `reason`.

    `times` has one entry per token count that was looked at; `chosen` names the layout of each, if any was
    tried. `packings` holds those that the buckets name, each one packing or one per group of channels.
    `prepack`: the dense layer is faster with its weight reordered.
    """

    reason: str
    times: tuple[Times, ...] = ()
    chosen: tuple[Layout, ...] = ()
    packings: tuple[tuple[Tensor, ...], ...] = ()
    buckets: tuple[ops.Bucket, ...] = ()
    prepack: bool = False

    @property
    def is_sparse(self) -> bool:
        return bool(self.buckets)

    @property
    def dense_kind(self) -> str:
        return "prepacked" if self.prepack else "dense"


def plan(case: Case, tokens: Sequence[int], timer: Timer, memory: float) -> Plan:
    """Decide for one layer that sees these numbers of tokens, each of them equally important.

    Every bucket takes the layout that is fastest there, as long as all together take at most `memory` times
    the dense weight's bytes. The layer becomes sparse if the sum over the token counts of sparse time / best
    dense time is below their number. COMPACT: one layout, that of fewest bytes, if it saves any.
    """
    counts = sorted(set(tokens))
    if memory == COMPACT:
        return _compact_plan(case, counts, timer)
    sparsity = case.weights.sparsity
    if sparsity < case.min_sparsity:
        reason = f"too dense to win: sparsity {sparsity:.2f}, tried from {case.min_sparsity}"
        return _dense(reason, tuple(timer(case, (), m) for m in counts))

    tried = {m: case.layouts(m) for m in counts}
    times = {m: timer(case, tried[m], m) for m in counts}
    chosen = _cheapest(case, times, SPEED)
    if chosen is None or _nbytes(case, set(chosen.values())) > memory * case.dense_weights.weight.nbytes:
        # The best of each bucket are too much together: look for those that serve several.
        every = tuple(dict.fromkeys((*itertools.chain(*tried.values()), case.compact_layout())))
        times = {m: timer(case, every, m) for m in counts}
        chosen = _cheapest(case, times, memory)
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
        tuple(case.packed(layout) for layout in used),
        _buckets(case, chosen, used),
    )


def _dense(reason: str, times: tuple[Times, ...], chosen: tuple[Layout, ...] = ()) -> Plan:
    ways = (PREPACKED, SEMI_STRUCTURED)
    prepacked = [us / time.dense[PLAIN] for time in times for name, us in time.dense.items() if name in ways]
    prepack = bool(prepacked) and sum(prepacked) < _PREPACK_GAIN * len(prepacked)
    return Plan(reason, times, chosen, prepack=prepack)


def _cheapest(case: Case, times: Mapping[int, Times], memory: float) -> dict[int, Layout] | None:
    """Token count -> layout, the same for all of a bucket, of the smallest sum of ratios within `memory`."""
    groups = list(_by_bucket(list(times), case.limits).values())
    options = []
    for counts in groups:
        # In the order of the layouts: of several that are equally fast it is always the same that is chosen.
        common = [
            layout for layout in times[counts[0]].sparse if all(layout in times[m].sparse for m in counts)
        ]
        cost = {layout: sum(times[m].ratio(layout) for m in counts) for layout in common}
        options.append(sorted(cost.items(), key=lambda item: item[1]))
    limit = memory * case.dense_weights.weight.nbytes
    best: tuple[float, tuple[Layout, ...]] | None = None
    for combination in itertools.product(*options):
        total = sum(cost for _, cost in combination)
        layouts = tuple(layout for layout, _ in combination)
        if best is not None and total >= best[0]:
            continue
        if memory < SPEED and _nbytes(case, set(layouts)) > limit:
            continue
        best = total, layouts
    if best is None:
        return None
    return {m: layout for counts, layout in zip(groups, best[1], strict=True) for m in counts}


def _nbytes(case: Case, layouts: set[Layout]) -> int:
    return sum(packed.nbytes for layout in layouts for packed in case.packed(layout))


def _by_bucket(counts: Sequence[int], limits: Sequence[int | None]) -> dict[int | None, list[int]]:
    """Token counts in each bucket that has any, in the order of their limits."""
    found: dict[int | None, list[int]] = {limit: [] for limit in limits}
    for m in counts:
        found[next(limit for limit in limits if limit is None or m <= limit)].append(m)
    return {limit: group for limit, group in found.items() if group}


def _buckets(case: Case, chosen: Mapping[int, Layout], used: Sequence[Layout]) -> tuple[ops.Bucket, ...]:
    groups = _by_bucket(list(chosen), case.limits)
    limits = [*list(groups)[:-1], None]
    return tuple(
        ops.Bucket(limit, used.index(chosen[counts[-1]]), case.kernel(chosen[counts[-1]], counts[-1]))
        for limit, counts in zip(limits, groups.values(), strict=True)
    )


def _compact_plan(case: Case, counts: Sequence[int], timer: Timer) -> Plan:
    layout = case.compact_layout()
    packed = case.packed(layout)
    nbytes, dense_nbytes = _nbytes(case, {layout}), case.dense_weights.weight.nbytes
    if nbytes >= dense_nbytes:
        times = tuple(timer(case, (), m) for m in counts)
        return _dense(f"dense is smaller: {dense_nbytes:,} bytes against {nbytes:,} ({layout})", times)
    times = tuple(timer(case, (layout,), m) for m in counts)
    gains = _gains([time.ratio(layout) for time in times])
    reason = f"{nbytes / dense_nbytes:.2f} of the dense bytes, {gains}"
    return Plan(reason, times, (layout,) * len(times), (packed,), case.buckets(layout))


def _gains(ratios: Sequence[float]) -> str:
    return " / ".join(f"{1 / ratio:.1f}x" for ratio in ratios) + " dense"


def _dense_is_faster(times: Sequence[Times], chosen: Sequence[Layout]) -> str:
    """Names the token count at which the dense layer wins by most."""
    time, layout = max(zip(times, chosen, strict=True), key=lambda pair: pair[0].ratio(pair[1]))
    return (
        f"dense is faster: {time.dense_us:.1f} us against {time.sparse[layout]:.1f} us "
        f"({layout}) at m={time.tokens}"
    )
