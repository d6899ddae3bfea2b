"""The settings of a layer benchmark, which are also its command-line options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparseinfer import ops
from sparseinfer._arguments import argument, positive, size
from sparseinfer.bench.families import ALL, FAMILIES, Shape, named
from sparseinfer.bench.peers.registry import NAMES, Peer, read_peers
from sparseinfer.formats.dtypes import WEIGHT_DTYPES

WEIGHTS = ("warm", "cold")


@dataclass(frozen=True)
class Settings:
    """Benchmarks all combinations of shape, sparsity, dtype, tokens, threads and state of the weights.

    The `help` of each field describes it. ValueError: an invalid value.
    """

    shapes: Sequence[tuple[int, int]] = field(
        default=((768, 768), (3072, 768), (768, 3072)),
        metadata=argument("n and k; repeatable", flag="shape", read=size, metavar="NxK", repeated=True),
    )
    layers: Sequence[str] = field(
        default=(),
        metadata=argument(
            f"{', '.join((*FAMILIES, ALL))}: the shapes of these models in place of --shape, and what all of "
            "a model's matrices together gain",
            several=True,
        ),
    )
    sparsities: Sequence[float] = field(
        default=(0.5, 0.7, 0.8, 0.9, 0.95),
        metadata=argument("fractions of zeros", flag="sparsity", read=float, metavar="S", several=True),
    )
    tokens: Sequence[int] = field(
        default=(1, 16, 128),
        metadata=argument("numbers of tokens (rows of x)", read=positive, metavar="M", several=True),
    )
    dtypes: Sequence[str] = field(
        default=("f32",),
        metadata=argument(
            "f32, bf16, f16, i8; of --model f32, bf16w (rounded), bf16 or int8 (where faster), bf16-model",
            flag="dtype",
            several=True,
        ),
    )
    threads: Sequence[int] = field(
        default=(1,), metadata=argument("numbers of torch threads", read=positive, several=True)
    )
    weights: Sequence[str] = field(
        default=("warm",), metadata=argument("warm: in cache; cold: read from memory", several=True)
    )
    block: tuple[int, int] | None = field(
        default=None, metadata=argument("zeros in blocks; adds the kernels for BSR", read=size, metavar="RxC")
    )
    isas: Sequence[str] = field(
        default=(),
        metadata=argument(
            "instruction-set levels of the kernels; default: the active one", flag="isa", several=True
        ),
    )
    budget_s: float = field(
        default=1.0,
        metadata=argument(
            "seconds of timing for each table, or each row of --model",
            flag="budget",
            read=float,
            metavar="SECONDS",
        ),
    )
    peers: Sequence[Peer] = field(
        default=read_peers("torch-csr,scipy"),
        metadata=argument(
            f"libraries to compare with, of {', '.join(NAMES)}; one that is installed in another environment "
            "runs there: NAME=ENVIRONMENT, or .venv-peers-NAME in this folder",
            read=read_peers,
            metavar="NAME,...",
        ),
    )
    seed: int = field(default=0, metadata=argument("seed of the random numbers", read=int))

    def __post_init__(self) -> None:
        for name in ("shapes", "sparsities", "tokens", "dtypes", "threads", "weights"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        named(tuple(self.layers))
        for n, k in self.sizes:
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
            _expect(dtype in WEIGHT_DTYPES, "dtypes", f"one of {', '.join(WEIGHT_DTYPES)}", dtype)
        for state in self.weights:
            _expect(state in WEIGHTS, "weights", f"one of {', '.join(WEIGHTS)}", state)
        levels = ops.isa_levels()
        for isa in self.isas:
            _expect(isa in levels, "isas", f"one of {', '.join(levels)}", isa)
        for threads in self.threads:
            _expect(threads >= 1, "threads", "at least 1", threads)
        _expect(0 < self.budget_s < math.inf, "budget_s", "a positive number of seconds", self.budget_s)

    @property
    def sizes(self) -> Sequence[Shape]:
        """The shapes to measure: those of the families in `layers`, if any, else `shapes`."""
        families = named(tuple(self.layers)).values()
        return tuple(dict.fromkeys(shape for family in families for shape in family)) or self.shapes

    @property
    def cell_count(self) -> int:
        sizes = (self.sizes, self.sparsities, self.tokens, self.dtypes, self.threads, self.weights)
        return math.prod(len(size) for size in sizes)


def _expect(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got}")
