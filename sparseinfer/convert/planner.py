"""Which layers become sparse, and which packing serves how many tokens: measured, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sparseinfer import ops
from sparseinfer.convert.measure import MAX_TOKENS, Times, measure
from sparseinfer.convert.weights import Weights
from sparseinfer.formats import CSR

# Below this sparsity no packing has beaten the best dense at any token count, so none is tried.
MIN_SPARSITY = 0.3

# Upper ends of the token buckets a layer may have, ascending; None = no limit.
BUCKETS = (15, None)


@dataclass(frozen=True)
class Candidate:
    """A packing worth measuring in the bucket that ends at `bucket`, between two sparsities."""

    packing: str
    bucket: int | None
    min_sparsity: float = MIN_SPARSITY
    max_sparsity: float = 1.0


# One row makes a packing known to the planner.
CANDIDATES = (
    Candidate("csr", 15),
    Candidate("rowgroup", None, max_sparsity=0.9),
    Candidate("rowlist", None, min_sparsity=0.6),
)


@dataclass(frozen=True)
class Plan:
    """The decision for one layer. Empty `packings` and `buckets`: it stays dense, for `reason`.

    `times` has one entry per token count that was measured; `chosen` names the packing of each.
    """

    reason: str
    times: tuple[Times, ...] = ()
    chosen: tuple[str, ...] = ()
    packings: tuple[Tensor, ...] = ()
    buckets: tuple[ops.Bucket, ...] = ()

    @property
    def is_sparse(self) -> bool:
        return bool(self.packings)


def plan(weights: Weights, tokens: Sequence[int]) -> Plan:
    """Decide for one layer that sees these numbers of tokens, each of them equally important.

    Every bucket takes its best packing. The layer becomes sparse if the sum over the token counts of sparse
    time / best dense time is below their number.
    """
    sparsity = weights.sparsity
    if sparsity < MIN_SPARSITY:
        return Plan(f"too dense to win: sparsity {sparsity:.2f}, tried from {MIN_SPARSITY}")
    packer = _Packer(weights.weight)
    choices = [_choose(weights, packer, limit, counts) for limit, counts in _by_bucket(tokens).items()]
    times = tuple(time for choice in choices for time in choice.times)
    chosen = tuple(choice.packing for choice in choices for _ in choice.times)
    ratios = [time.ratio(packing) for time, packing in zip(times, chosen, strict=True)]
    if sum(ratios) >= len(ratios):
        return Plan(_dense_is_faster(times, chosen), times, chosen)

    names = list(dict.fromkeys(choice.packing for choice in choices))
    packings = tuple(packer(name) for name in names)
    limits = [choice.limit for choice in choices[:-1]] + [None]
    buckets = tuple(
        ops.Bucket(limit, index := names.index(choice.packing), ops.default_kernel(packings[index]))
        for limit, choice in zip(limits, choices, strict=True)
    )
    gains = " / ".join(f"{1 / ratio:.1f}x" for ratio in ratios)
    return Plan(f"{gains} dense", times, chosen, packings, buckets)


@dataclass(frozen=True)
class _Choice:
    limit: int | None
    packing: str
    times: tuple[Times, ...]


@dataclass
class _Packer:
    """Packs a weight [n, k] under a name at most once."""

    weight: Tensor
    _fmt: CSR | None = None
    _packed: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, packing: str) -> Tensor:
        if packing not in self._packed:
            self._fmt = self._fmt or CSR.from_dense(self.weight)
            self._packed[packing] = ops.pack(self._fmt, packing)
        return self._packed[packing]


def _by_bucket(tokens: Sequence[int]) -> dict[int | None, list[int]]:
    """Token counts to measure for each bucket that has any, in the order of BUCKETS."""
    found: dict[int | None, list[int]] = {limit: [] for limit in BUCKETS}
    for m in sorted({min(m, MAX_TOKENS) for m in tokens}):
        found[next(limit for limit in BUCKETS if limit is None or m <= limit)].append(m)
    return {limit: counts for limit, counts in found.items() if counts}


def _choose(weights: Weights, packer: _Packer, limit: int | None, counts: Sequence[int]) -> _Choice:
    names = tuple(
        candidate.packing
        for candidate in CANDIDATES
        if candidate.bucket == limit and candidate.min_sparsity <= weights.sparsity <= candidate.max_sparsity
    )
    times = tuple(measure(weights, names, packer, m) for m in counts)
    best = min(names, key=lambda name: sum(time.ratio(name) for time in times))
    return _Choice(limit, best, times)


def _dense_is_faster(times: Sequence[Times], chosen: Sequence[str]) -> str:
    """Names the token count at which the dense layer wins by most."""
    time, packing = max(zip(times, chosen, strict=True), key=lambda pair: pair[0].ratio(pair[1]))
    return (
        f"dense is faster: {time.dense_us:.1f} us against {time.sparse[packing]:.1f} us "
        f"({packing}) at m={time.tokens}"
    )
