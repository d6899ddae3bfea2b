"""Which layers become sparse, and which layout serves how many tokens: measured, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from sparseinfer import ops
from sparseinfer.convert.measure import MAX_TOKENS, Times, measure
from sparseinfer.convert.weights import Weights
from sparseinfer.formats import CSR
from sparseinfer.ops import Layout

# Below this sparsity no layout has beaten the best dense at any token count, so none is tried.
MIN_SPARSITY = 0.3

# Upper ends of the token buckets a layer may have, ascending; None = no limit. Other tiles begin there.
BUCKETS = (4, ops.FEW_TOKENS, 47, None)

# "speed": each bucket has the layout that is fastest there. "compact": one layout, that of fewest bytes.
Memory = Literal["speed", "compact"]


@dataclass(frozen=True)
class Plan:
    """The decision for one layer. Empty `packings` and `buckets`: it stays dense, for `reason`.

    `times` has one entry per token count that was measured; `chosen` names the layout of each.
    """

    reason: str
    times: tuple[Times, ...] = ()
    chosen: tuple[Layout, ...] = ()
    packings: tuple[Tensor, ...] = ()
    buckets: tuple[ops.Bucket, ...] = ()

    @property
    def is_sparse(self) -> bool:
        return bool(self.packings)


def checked_memory(memory: str) -> Memory:
    """ValueError unless it is one of `Memory`."""
    if memory not in get_args(Memory):
        raise ValueError(f"memory: expected one of {', '.join(get_args(Memory))}, got {memory!r}")
    return memory  # type: ignore[return-value]


def plan(weights: Weights, tokens: Sequence[int], memory: Memory = "speed") -> Plan:
    """Decide for one layer that sees these numbers of tokens, each of them equally important.

    For speed every bucket takes its best layout, and the layer becomes sparse if the sum over the token
    counts of sparse time / best dense time is below their number. Compact, it becomes sparse if that takes
    fewer bytes.
    """
    packer = _Packer(weights.weight)
    if memory == "compact":
        return _compact_plan(weights, packer, tokens)
    sparsity = weights.sparsity
    if sparsity < MIN_SPARSITY:
        return Plan(f"too dense to win: sparsity {sparsity:.2f}, tried from {MIN_SPARSITY}")
    choices = [_choose(weights, packer, limit, counts) for limit, counts in _by_bucket(tokens).items()]
    times = tuple(time for choice in choices for time in choice.times)
    chosen = tuple(choice.layout for choice in choices for _ in choice.times)
    ratios = [time.ratio(layout) for time, layout in zip(times, chosen, strict=True)]
    if sum(ratios) >= len(ratios):
        return Plan(_dense_is_faster(times, chosen), times, chosen)

    used = list(dict.fromkeys(chosen))
    limits = [choice.limit for choice in choices[:-1]] + [None]
    buckets = tuple(
        ops.Bucket(limit, used.index(choice.layout), choice.layout.kernel(choice.times[-1].tokens))
        for limit, choice in zip(limits, choices, strict=True)
    )
    return Plan(_gains(ratios), times, chosen, tuple(packer(layout) for layout in used), buckets)


def _compact_plan(weights: Weights, packer: _Packer, tokens: Sequence[int]) -> Plan:
    layout = ops.compact_layout(weights.weight.dtype, weights.weight.dtype)
    packed = packer(layout)
    if packed.nbytes >= weights.weight.nbytes:
        return Plan(f"dense is smaller: {weights.weight.nbytes:,} bytes against {packed.nbytes:,} ({layout})")
    counts = sorted({min(m, MAX_TOKENS) for m in tokens})
    times = tuple(measure(weights, (layout,), packer, m) for m in counts)
    share = packed.nbytes / weights.weight.nbytes
    reason = f"{share:.2f} of the dense bytes, {_gains([time.ratio(layout) for time in times])}"
    return Plan(reason, times, (layout,) * len(times), (packed,), layout.buckets(0))


@dataclass(frozen=True)
class _Choice:
    limit: int | None
    layout: Layout
    times: tuple[Times, ...]


@dataclass
class _Packer:
    """Packs a weight [n, k] in a layout at most once."""

    weight: Tensor
    _fmt: CSR | None = None
    _packed: dict[Layout, Tensor] = field(default_factory=dict)

    def __call__(self, layout: Layout) -> Tensor:
        if layout not in self._packed:
            self._fmt = self._fmt or CSR.from_dense(self.weight)
            self._packed[layout] = layout.pack(self._fmt)
        return self._packed[layout]


def _by_bucket(tokens: Sequence[int]) -> dict[int | None, list[int]]:
    """Token counts to measure for each bucket that has any, in the order of BUCKETS."""
    found: dict[int | None, list[int]] = {limit: [] for limit in BUCKETS}
    for m in sorted({min(m, MAX_TOKENS) for m in tokens}):
        found[next(limit for limit in BUCKETS if limit is None or m <= limit)].append(m)
    return {limit: counts for limit, counts in found.items() if counts}


def _choose(weights: Weights, packer: _Packer, limit: int | None, counts: Sequence[int]) -> _Choice:
    dtype = weights.weight.dtype
    serving = ops.layouts(dtype, dtype, counts[-1])
    wanted = tuple(layout for layout in serving if ops.may_win(layout, weights.sparsity))
    times = tuple(measure(weights, wanted, packer, m) for m in counts)
    best = min(wanted, key=lambda layout: sum(time.ratio(layout) for time in times))
    return _Choice(limit, best, times)


def _gains(ratios: Sequence[float]) -> str:
    return " / ".join(f"{1 / ratio:.1f}x" for ratio in ratios) + " dense"


def _dense_is_faster(times: Sequence[Times], chosen: Sequence[Layout]) -> str:
    """Names the token count at which the dense layer wins by most."""
    time, layout = max(zip(times, chosen, strict=True), key=lambda pair: pair[0].ratio(pair[1]))
    return (
        f"dense is faster: {time.dense_us:.1f} us against {time.sparse[layout]:.1f} us "
        f"({layout}) at m={time.tokens}"
    )
