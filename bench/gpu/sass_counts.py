"""What a warp of a tiled kernel executes for a tile, counted in its machine code.

- Instructions of the loop over tiles count once per tile, whatever their predicates: a lane that is switched
  off waits for the others. Of code that a branch may skip, all sides count.
- A loop that stores single weights to shared memory counts as often as a lane has pairs of entries; 1.5 of
  these are left for the loop that takes one at a time. Such loops without loads of values clear the tile, as
  stores of 16 bytes do: what counts is the way that a tile with so many pairs takes.
- Code that may be skipped or repeated and copies into the ring, or waits for it, counts once per chunk of the
  stream, however many copies of it the compiler made.
- What comes before and after the loop over tiles does not count: filling the ring, sums, and the epilogue.

Stalls do not count either: the figures are issue slots, not times.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sass import Block, Function, Loop, blocks, dominators, loops

from sparseinfer.convert.candidates.cuda_model import CHUNK_BYTES, FEW_PAIRS, Instructions

# Instructions by what executes them, the first that fits: 16 lanes per clock and multiprocessor for XU, 32
# for LSU, 64 for ALU and for integers in FMA.
PIPES = {
    "tensor": r"[HI]G?MMA",
    "XU": r"POPC|FLO|BREV|MUFU|I2F|F2I|REDUX",
    "uniform": r"U(?!BLKCP)|R2UR|S2U?R|CS2R|LDC",
    "LSU": r"LD(?!GDEPBAR)|ST|ATOM|RED|SHFL|SYNCS|UBLKCP",
    "FMA": r"IMAD|FFMA|FADD|FMUL|HFMA|HADD|HMUL",
    "control": r"BRA|BS|BREAK|EXIT|RET|CALL|NOP|WARP|YIELD|ELECT|\w*BAR|\w*FENCE",
    "ALU": r"",
}
_TENSOR = re.compile(PIPES["tensor"])
_COPIES = re.compile(r"LDGSTS|UBLKCP")
_WAITS = re.compile(r"SYNCS\.PHASECHK|LDGDEPBAR|DEPBAR")

# Of tiles whose numbers of pairs are spread evenly, per tile, where a loop takes 4 at a time.
_LEFT_PAIRS = 1.5

Opcodes = Counter[str]


@dataclass(frozen=True)
class Counts:
    """Instructions of a warp by opcode.

    tile            once per tile
    pairs, pair     per pair of entries, in the loop that takes several at a time, and in that for one
    clear           once per tile that is cleared as a whole
    cleared_pairs, cleared_pair   per pair of a tile that is cleared one by one
    ring            per chunk of the stream
    """

    tile: Opcodes = field(default_factory=Counter)
    pairs: Opcodes = field(default_factory=Counter)
    pair: Opcodes = field(default_factory=Counter)
    clear: Opcodes = field(default_factory=Counter)
    cleared_pairs: Opcodes = field(default_factory=Counter)
    cleared_pair: Opcodes = field(default_factory=Counter)
    ring: Opcodes = field(default_factory=Counter)

    @classmethod
    def loaded(cls, counts: Mapping[str, Mapping[str, float]]) -> Counts:
        """From JSON."""
        return cls(**{name: Counter(code) for name, code in counts.items()})

    def at(self, pairs: float, stream_bytes: float) -> dict[str, float]:
        """Of one tile, by opcode."""
        left = min(pairs, _LEFT_PAIRS)
        one_by_one = pairs <= FEW_PAIRS
        times = {
            "tile": 1.0,
            "pairs": pairs - left,
            "pair": left,
            "clear": 0.0 if one_by_one else 1.0,
            "cleared_pairs": pairs - left if one_by_one else 0.0,
            "cleared_pair": left if one_by_one else 0.0,
            "ring": stream_bytes / CHUNK_BYTES,
        }
        total: Counter[str] = Counter()
        for name, often in times.items():
            _add(total, getattr(self, name), often)
        return {opcode: often for opcode, often in sorted(total.items()) if often}


def pipe(opcode: str) -> str:
    return next(name for name, pattern in PIPES.items() if re.match(pattern, opcode))


def count(function: Function, tokens: int) -> Counts:
    """By the rules above, of a kernel that multiplies `tokens` at once. ValueError: no loop over tiles."""
    graph = blocks(function.instructions)
    nest = loops(graph)
    tile = next((loop for loop in nest if _products(graph, loop.blocks) >= 2 * tokens), None)
    if tile is None:
        raise ValueError(f"function: expected a loop with {2 * tokens} products, got none in {function.name}")
    inside = [loop for loop in nest if loop.blocks < tile.blocks]
    kinds = {loop: kind for loop in inside if (kind := _kind(graph, loop, inside))}
    runs = [loop for loop in inside if any(other.blocks < loop.blocks for other in kinds)]
    counted = [*(loop for loop in inside if loop in kinds or loop in runs), tile]
    above = dominators(graph)

    counts, ring = Counts(), defaultdict(list)
    for loop in counted:
        # Without the blocks of a loop inside it.
        body = {n for n in loop.blocks if next(one for one in counted if n in one.blocks) is loop}
        always = {n for n in body if all(n in above[latch] for latch in loop.latches)}
        for region in (always, *_connected(graph, body - always)):
            code = _code(graph, region)
            name, times = kinds.get(loop, ("tile", 1.0))
            if region is always:
                _add(getattr(counts, name), code, times)
            elif any(_COPIES.match(opcode) for opcode in code):
                ring["copies"].append(code)
            elif any(_WAITS.match(opcode) for opcode in code):
                ring["waits"].append(code)
            else:
                whole = code["STS.128"] >= 8
                _add(counts.clear if whole else getattr(counts, name), code, times)
    for codes in ring.values():
        for code in codes:
            _add(counts.ring, code, 1 / len(codes))
    return counts


def _kind(graph: Sequence[Block], loop: Loop, inside: Sequence[Loop]) -> tuple[str, float] | None:
    """Of a loop over pairs: the field of `Counts`, and how much of a pair's work one trip is."""
    nested = {n for other in inside if other.blocks < loop.blocks for n in other.blocks}
    code = _code(graph, loop.blocks - nested)
    pairs = code["STS.U16"] / 2
    if not pairs:
        return None
    return ("" if code["LDS"] else "cleared_") + ("pairs" if pairs > 1 else "pair"), 1 / pairs


def _products(graph: Sequence[Block], numbers: Iterable[int]) -> int:
    return sum(often for opcode, often in _code(graph, numbers).items() if _TENSOR.match(opcode))


def _code(graph: Sequence[Block], numbers: Iterable[int]) -> Opcodes:
    return Counter(instruction.opcode for n in numbers for instruction in graph[n].instructions)


def _add(to: Opcodes, code: Opcodes, times: float) -> None:
    for opcode, often in code.items():
        to[opcode] += often * times


def _connected(graph: Sequence[Block], numbers: set[int]) -> Iterator[set[int]]:
    """Sets of blocks that follow each other."""
    edges: dict[int, set[int]] = {n: set() for n in numbers}
    for n in numbers:
        for successor in numbers.intersection(graph[n].successors):
            edges[n].add(successor)
            edges[successor].add(n)
    left = set(numbers)
    while left:
        region, waiting = set(), [left.pop()]
        while waiting:
            n = waiting.pop()
            region.add(n)
            waiting += edges[n] & left
            left -= edges[n]
        yield region


def instructions(tile: Mapping[str, float]) -> Instructions:
    """Of a tile's instructions by opcode: how many, and how many of the ALU."""
    return Instructions(
        sum(tile.values()), sum(often for opcode, often in tile.items() if pipe(opcode) == "ALU")
    )
