"""What `layer.run` is to measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer import ops
from sparseinfer.ops.packing import DTYPES

WEIGHTS = ("warm", "cold")


@dataclass(frozen=True)
class Settings:
    """Every shape (n, k) at every sparsity, dtype, number of tokens m, of threads, and state of the weights.

    block      sizes (r, c) of the blocks that the zeros come in; None: zeros lie scattered
    isas       instruction-set levels of the kernels; none: the active one
    weights    "warm", in the cache where they fit, or "cold", from memory
    budget_s   seconds of timing for each cell

    ValueError: a value that cannot be measured.
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
    def cell_count(self) -> int:
        sizes = (self.shapes, self.sparsities, self.tokens, self.dtypes, self.threads, self.weights)
        return math.prod(len(size) for size in sizes)


def _expect(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got}")
