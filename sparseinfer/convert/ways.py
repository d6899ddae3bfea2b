"""Of all ways to compute one product at several token counts: the fastest of those that never lose.

A way never loses if at no token count it is slower than the best dense implementation of that count, but for
what counts as equal. What is lost at one count is not made up by what is gained at another: of ways that all
lose somewhere, the one that loses least is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparseinfer.convert.candidates.base import Candidate, Candidates
from sparseinfer.convert.options import SPEED
from sparseinfer.convert.timing.times import Times
from sparseinfer.ops import Layout

# Times that differ by less count as equal, as when candidates are ranked.
EQUAL = 1.02
# A way that holds the weight in another form, or rounds it, is to take less than this share of the time of
# one that does not. Chosen, not measured: less would be noise.
_SHARE_THAT_PAYS = 0.97


@dataclass(frozen=True)
class Way:
    """What computes a product at each of its token counts.

    variant   whose packings it uses; None: it is dense
    by_count  token count -> a dense implementation or a layout
    ratios    times over the best dense implementation, in the same order
    """

    variant: Candidates | None
    by_count: Mapping[int, Candidate]
    ratios: tuple[float, ...]

    @property
    def layouts(self) -> list[Layout]:
        return [each for each in dict.fromkeys(self.by_count.values()) if not isinstance(each, str)]

    @property
    def dense(self) -> list[str]:
        return [each for each in dict.fromkeys(self.by_count.values()) if isinstance(each, str)]

    @property
    def nbytes(self) -> int:
        """Of packings, and of a dense copy beside them."""
        if self.variant is None:
            return 0
        dense = len(self.dense) * self.variant.dense_weights.weight.nbytes
        return nbytes_of(self.variant, self.layouts) + dense

    @property
    def worst(self) -> float:
        return max(EQUAL, *self.ratios)

    @property
    def cost(self) -> float:
        return sum(self.ratios)

    def beats(self, other: Way) -> bool:
        """Whether it is to be taken instead of another, that comes first where both are equally good."""
        if self.worst != other.worst:
            return self.worst < other.worst
        is_smaller = self.variant is not None and other.variant is None
        return self.cost < (1.0 if is_smaller else _SHARE_THAT_PAYS) * other.cost


def best(ways: Sequence[Way]) -> Way:
    """The one to take, of ways in the order of what they change: the first changes nothing."""
    taken = ways[0]
    for way in ways[1:]:
        if way.beats(taken):
            taken = way
    return taken


def dense_way(name: str, times: Sequence[Times]) -> Way:
    """One dense implementation at all token counts."""
    return Way(None, {time.tokens: name for time in times}, tuple(time.ratio(name) for time in times))


def sparse_way(
    candidates: Candidates, times: Sequence[Times], memory: float, dense: Sequence[str] = ()
) -> Way | None:
    """The best with layouts of these candidates that take at most `memory` times the dense bytes, or None.

    dense   implementations of which one may serve some of the buckets, held beside the packings

    Token counts of one bucket get the same.
    """
    by_tokens = {time.tokens: time for time in times}
    groups = list(by_bucket(list(by_tokens), candidates.limits).values())
    options = [_options(candidates, [by_tokens[m] for m in counts], dense) for counts in groups]
    limit = memory * candidates.dense_weights.weight.nbytes
    taken: Way | None = None
    for combination in _combinations(options):
        by_count = {m: each for counts, each in zip(groups, combination, strict=True) for m in counts}
        way = Way(candidates, by_count, tuple(by_tokens[m].ratio(by_count[m]) for m in by_count))
        if taken is not None and (way.worst, way.cost) >= (taken.worst, taken.cost):
            continue
        if memory == SPEED or way.nbytes <= limit:
            taken = way
    return taken


def _options(candidates: Candidates, times: Sequence[Times], dense: Sequence[str]) -> list[Candidate]:
    """What can serve these token counts, the fastest first; in this order, so that of several that are
    equally fast it is always the same that is chosen."""
    common: list[Candidate] = [
        layout
        for layout in times[0].sparse
        if candidates.holds(layout) and all(layout in time.sparse for time in times)
    ]
    common += [name for name in dense if all(name in time.dense for time in times)]
    return sorted(common, key=lambda each: sum(time.ratio(each) for time in times))


def _combinations(options: Sequence[Sequence[Candidate]]) -> Iterator[tuple[Candidate, ...]]:
    """One of each, with layouts of one format, which state_dict shows, and one dense way at most."""
    for combination in itertools.product(*options):
        formats = {each.format for each in combination if not isinstance(each, str)}
        if len(formats) == 1 and len({each for each in combination if isinstance(each, str)}) <= 1:
            yield combination


def nbytes_of(candidates: Candidates, layouts: Sequence[Layout]) -> int:
    """Of packings in these layouts."""
    return sum(packed.nbytes for layout in layouts for packed in candidates.packed(layout))


def by_bucket(counts: Sequence[int], limits: Sequence[int | None]) -> dict[int | None, list[int]]:
    """Token counts in each bucket that has any, in the order of their limits."""
    buckets: dict[int | None, list[int]] = {limit: [] for limit in limits}
    for m in counts:
        buckets[next(limit for limit in limits if limit is None or m <= limit)].append(m)
    return {limit: group for limit, group in buckets.items() if group}
