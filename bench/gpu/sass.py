"""Machine code of CUDA kernels as cuobjdump prints it: functions, basic blocks and loops."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_TARGET = re.compile(r"^\s*\.target\s+(sm_\w+)")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<predicate>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)"
    r"\s*(?P<operands>[^;]*);"
)
_ADDRESS = re.compile(r"0x[0-9a-f]+$")


@dataclass(frozen=True)
class Instruction:
    """`opcode` with its modifiers, as in "LDS.U16"; `predicate` "" where there is none."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


@dataclass(frozen=True)
class Function:
    """One kernel, its name mangled, of one architecture such as "sm_90a"."""

    name: str
    arch: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other, and the numbers of the blocks that may follow."""

    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]


@dataclass(frozen=True)
class Loop:
    """A natural loop: every way into its blocks leads through `header`; `latches` jump back to it."""

    header: int
    latches: frozenset[int]
    blocks: frozenset[int]


def functions(text: str) -> Iterator[Function]:
    """Those of the output of `cuobjdump -sass`, in its order."""
    name, arch = "", ""
    instructions: list[Instruction] = []
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            predicate = match["predicate"] or ""
            instructions.append(
                Instruction(int(match["address"], 16), predicate, match["opcode"], match["operands"].strip())
            )
        elif match := _TARGET.match(line):
            if name:
                yield Function(name, arch, tuple(instructions))
            name, arch = "", match[1]
        elif match := _FUNCTION.match(line):
            if name:
                yield Function(name, arch, tuple(instructions))
            name, instructions = match[1], []
    if name:
        yield Function(name, arch, tuple(instructions))


def blocks(instructions: Sequence[Instruction]) -> list[Block]:
    """Basic blocks in the order of their addresses; the first one is where the function begins.

    BSYNC stands right before the address that its BSSY names, so it falls through. BRA.DIV and BRA.CONV are
    for warps that have diverged where they should not have: not taken. CALL either comes back or is a jump.
    An indexed branch (BRX) goes to the blocks behind it to which there is no other way.
    """
    targets = {at for at in map(_target, instructions) if at is not None}
    cuts = [
        n
        for n, i in enumerate(instructions)
        if n == 0 or i.address in targets or instructions[n - 1].name in _ENDS
    ]
    pieces = [tuple(instructions[a:b]) for a, b in zip(cuts, [*cuts[1:], len(instructions)], strict=True)]
    numbers = {piece[0].address: n for n, piece in enumerate(pieces)}
    follow: list[list[int]] = []
    for number, piece in enumerate(pieces):
        target = _target(piece[-1])
        follow.append([] if target is None else [numbers[target]])
        if number + 1 < len(pieces) and not _always_leaves(piece[-1]):
            follow[-1].append(number + 1)
    reached = {n for successors in follow for n in successors}
    for number, piece in enumerate(pieces):
        if piece[-1].name in _INDEXED:
            behind = range(number + 1, len(pieces))
            follow[number] += itertools.takewhile(lambda n: n not in reached, behind)
    return [Block(piece, tuple(dict.fromkeys(s))) for piece, s in zip(pieces, follow, strict=True)]


_INDEXED = ("BRX", "BRXU")
_ENDS = ("BRA", "CALL", "EXIT", "RET", *_INDEXED)


def _target(instruction: Instruction) -> int | None:
    if instruction.name not in ("BRA", "CALL") or instruction.opcode in ("BRA.DIV", "BRA.CONV"):
        return None
    match = _ADDRESS.search(instruction.operands)
    return int(match[0], 16) if match else None


def _always_leaves(instruction: Instruction) -> bool:
    if instruction.name not in _ENDS or instruction.name == "CALL":
        return False
    if instruction.name == "BRA" and _target(instruction) is None:
        return False
    # A branch may have its condition for an operand: "BRA P1, 0x240".
    return not instruction.predicate and not (instruction.name == "BRA" and "," in instruction.operands)


def dominators(graph: Sequence[Block]) -> dict[int, set[int]]:
    """Of each block that can be reached: those which every way to it from the first block leads through."""
    order = _reverse_postorder(graph)
    before = _predecessors(graph, order)
    above = {n: set(order) for n in order}
    above[order[0]] = {order[0]}
    changed = True
    while changed:
        changed = False
        for n in order[1:]:
            now = set.intersection(*(above[p] for p in before[n])) | {n}
            if now != above[n]:
                above[n], changed = now, True
    return above


def loops(graph: Sequence[Block]) -> list[Loop]:
    """Innermost first. Backward branches to one header make one loop."""
    above = dominators(graph)
    latches: dict[int, set[int]] = {}
    for n in above:
        for successor in graph[n].successors:
            if successor in above[n]:
                latches.setdefault(successor, set()).add(n)
    before = _predecessors(graph, above)
    nest = []
    for header, ends in latches.items():
        inside, waiting = {header}, list(ends)
        while waiting:
            n = waiting.pop()
            if n not in inside:
                inside.add(n)
                waiting += before[n]
        nest.append(Loop(header, frozenset(ends), frozenset(inside)))
    return sorted(nest, key=lambda loop: len(loop.blocks))


def _predecessors(graph: Sequence[Block], numbers: Iterable[int]) -> dict[int, list[int]]:
    """Of each of these blocks: those of them that it may follow. Whatever follows one of them is one, too."""
    before: dict[int, list[int]] = {n: [] for n in numbers}
    for n in before:
        for successor in graph[n].successors:
            before[successor].append(n)
    return before


def _reverse_postorder(graph: Sequence[Block]) -> list[int]:
    seen, order = {0}, []
    stack = [(0, iter(graph[0].successors))]
    while stack:
        n, rest = stack[-1]
        following = next((s for s in rest if s not in seen), None)
        if following is None:
            order.append(n)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(graph[following].successors)))
    return order[::-1]
