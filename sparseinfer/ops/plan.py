"""Plans: which kernel a layer runs for which number of tokens, decided before the first call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise


@dataclass(frozen=True)
class Bucket:
    """Up to `max_tokens` tokens (None: no limit) run `kernel` on packing number `packing`.

    `kernel` is a base name, without the instruction-set suffix: "spmm_rowgroup_f32_r4". The suffix is this
    machine's best level, so a plan means the same on every machine.
    """

    max_tokens: int | None
    packing: int
    kernel: str


Plan = tuple[Bucket, ...]


def format_plan(buckets: Sequence[Bucket]) -> str:
    """The plan as text for the operators, "15:0:spmm_csr_f32_r1,*:1:spmm_rowgroup_f32_r4"."""
    _check(buckets)
    return ",".join(
        f"{'*' if b.max_tokens is None else b.max_tokens}:{b.packing}:{b.kernel}" for b in buckets
    )


@lru_cache(maxsize=4096)
def parse_plan(plan: str) -> Plan:
    """The inverse of `format_plan`. ValueError: invalid text."""
    buckets = []
    for part in plan.split(","):
        fields = part.split(":")
        if len(fields) != 3 or not fields[1].isdecimal() or not (fields[0] == "*" or fields[0].isdecimal()):
            raise ValueError(f"plan: expected comma-separated max_tokens:packing:kernel, got {plan!r}")
        limit = None if fields[0] == "*" else int(fields[0])
        buckets.append(Bucket(limit, int(fields[1]), fields[2]))
    _check(buckets)
    return tuple(buckets)


def bucket_for(plan: str, tokens: int) -> Bucket:
    """The bucket of a plan for this number of tokens. ValueError: not a plan."""
    return next(b for b in parse_plan(plan) if b.max_tokens is None or tokens <= b.max_tokens)


def check_packings(plan: str, needed: int, packings: Sequence[object]) -> None:
    """ValueError unless there are as many packings as the plan's bucket needs."""
    if needed > len(packings):
        raise ValueError(f"packings: expected at least {needed} for plan {plan}, got {len(packings)}")


def _check(buckets: Sequence[Bucket]) -> None:
    limits = [b.max_tokens for b in buckets]
    bounded = [limit for limit in limits[:-1] if limit is not None]
    ascending = all(a < b for a, b in pairwise(bounded))
    if not limits or limits[-1] is not None or len(bounded) != len(limits) - 1 or not ascending:
        raise ValueError(f"plan: expected ascending token limits that end with no limit, got {limits}")
