"""The tiled packings as csrc/include/sparseinfer/gpu_tiles.h describes them, read with plain numpy.

Positions are those of "Matrix Fragments for mma.m16n8k16" in the PTX ISA. No table of the package is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.names import DTYPES

MAX_DISTANCE = {"delta4": 15, "delta8": 64}


def where(lane: int, fragment: int, element: int) -> tuple[int, int]:
    """Position and column in the tile of a_element of a lane in fragment 4 * strip + s."""
    group, q = lane // 4, lane % 4
    row = group if element in (0, 1, 4, 5) else group + 8
    return fragment // 4 * 16 + row, 16 * q + fragment % 4 * 4 + element // 4 * 2 + element % 2


def moved(byte: int, distance: int) -> int:
    """Down a column of halfwords of 64 rows of 128 bytes, then on at the top of the next one."""
    column, row = divmod(byte % 128 // 2 * 64 + byte // 128 + distance, 64)
    return row * 128 + column * 2


def place_of(position: int, column: int) -> int:
    """Its number along those columns."""
    lane = position % 8 * 4 + column // 16
    element = column % 2 + position // 8 % 2 * 2 + column // 2 % 2 * 4
    byte = (position // 16 * 4 + column % 16 // 4) * 512 + lane * 16 + element * 2
    return byte % 128 // 2 * 64 + byte // 128


@dataclass
class Blob:
    """The sections of a packing as arrays."""

    packed: Tensor

    def __post_init__(self) -> None:
        self.info = core.gpu_describe(self.packed.data_ptr(), self.packed.numel())
        n, k = self.info["n"], self.info["k"]
        self.kind = self.info["packing"]
        self.rows, self.tiles = -(-n // 64), -(-k // 64)
        self.pieces = 16 if self.rows < 132 else 8
        columns = self.rows * self.tiles
        self.order = self._section("order", "u1", n)
        self.starts = self._section("starts", "u4", self.rows * self.pieces + 1)
        if self.kind == "bitmap":
            self.words = self._section("columns", "u4", columns * 128).reshape(self.rows, self.tiles, 32, 4)
        else:
            self.pairs = self._section("columns", "u1", columns).reshape(self.rows, self.tiles)
        self.streams = self._section("values", "u1", self.info["units"] * 16)

    def _section(self, name: str, dtype: str, count: int) -> np.ndarray:
        begin = self.info[name]
        return self.packed.numpy()[begin : begin + count * np.dtype(dtype).itemsize].view(dtype)

    def streams_of_tiles(self) -> Iterator[tuple[int, range, np.ndarray]]:
        """Row of tiles, tiles and bytes of each piece."""
        for row in range(self.rows):
            for piece in range(self.pieces):
                begin, end = self.starts[row * self.pieces + piece :][:2].astype(int) * 16
                tiles = range(piece * self.tiles // self.pieces, (piece + 1) * self.tiles // self.pieces)
                yield row, tiles, self.streams[begin:end]

    def weights(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Row of tiles, tile, position, column and bits of every weight."""
        for row, tiles, stream in self.streams_of_tiles():
            for weight in self._bitmap(row, tiles, stream) if self.kind == "bitmap" else ():
                yield row, *weight
            for tile, entries in self.entries(row, tiles, stream) if self.kind != "bitmap" else ():
                for byte, bits in entries:
                    if bits:
                        yield row, tile, *where(byte // 16 % 32, byte // 512, byte % 16 // 2), bits

    def _bitmap(self, row: int, tiles: range, stream: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
        values = stream.view("u2").reshape(-1, 32, 2)
        used = np.zeros(32, int)
        for tile in tiles:
            used = np.maximum(used, used.max() - 32)
            for strip in range(4):
                for lane in range(32):
                    word = int(self.words[row, tile, lane, strip])
                    for bit in range(32):
                        if word >> bit & 1:
                            at = used[lane]
                            used[lane] += 1
                            bits = int(values[at // 2, lane, at % 2])
                            yield tile, *where(lane, 4 * strip + bit // 8, bit % 8), bits
        assert len(values) == -(-used.max() // 2)

    def entries(
        self, row: int, tiles: range, stream: np.ndarray
    ) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Of each tile the bytes and values of all entries, lane after lane."""
        code_bytes = 32 if self.kind == "delta4" else 64
        for tile in tiles:
            pairs = int(self.pairs[row, tile])
            size = 64 + pairs * (128 + code_bytes)
            own, stream = stream[:size], stream[size:]
            assert len(own) == size
            firsts, body = own[:64].view("u2"), own[64:].reshape(pairs, 128 + code_bytes)
            found = []
            for lane in range(32):
                byte = int(firsts[lane])
                for pair in body:
                    for half in range(2):
                        found.append((byte, int(pair[:128].view("u2")[2 * lane + half])))
                        if self.kind == "delta4":
                            byte = moved(byte, int(pair[128 + lane]) >> 4 * half & 15)
                        else:
                            byte = moved(byte, int(pair[128 + 2 * lane + half]))
                assert pairs == 0 or byte == found[-1][0]
            yield tile, found
        assert len(stream) == 0

    def dense(self) -> Tensor:
        """The matrix [n, k]. IndexError where a weight lies outside."""
        n, k = self.info["n"], self.info["k"]
        row_at = {(r // 64, int(p)): r for r, p in enumerate(self.order)}
        dense = np.zeros((n, k), "u2")
        for row, tile, position, column, bits in self.weights():
            dense[row_at[row, position], tile * 64 + column] = bits
        return torch.from_numpy(dense.view("i2")).view(DTYPES[self.info["dtype"]])
