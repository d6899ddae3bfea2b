"""Makes the tiled packings of the CUDA kernels (bitmap, delta4, delta8), by torch on the weight's device.

csrc/include/sparseinfer/gpu_tiles.h describes the layout. Only a few rows of tiles are packed at a time, to
limit temporary memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.cuda.blob import Blob, offsets

DELTA = ("delta4", "delta8")
TILED = ("bitmap", *DELTA)

_LANES = 32
_STRIPS = 4
_PLACES = core.gpu_tile**2
_WORDS = _PLACES // 32
_UNIT_BYTES = 16
_STREAM_ROW_BYTES = 4 * _LANES
_PAIR_ENTRIES = 2 * _LANES
_FIRSTS_BYTES = 2 * _LANES

# Weights, zeros among them, that are packed at a time.
_AT_ONCE = 1 << 23


def pack_bitmap(values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Tensor:
    """Packs CSR [n, k] on the device of its parts: values [nnz] of 16 bits, crow [n + 1], col [nnz].

    Stored zeros stay stored.
    """
    position = _positions(crow)
    parts = [_bitmap_part(rows) for rows in _rows_of_tiles("bitmap", values, crow, col, shape, position)]
    return _joined("bitmap", values, values.shape[0], shape, position, parts)


def pack_delta(packing: str, values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Tensor:
    """Packs CSR as "delta4" or "delta8", without stored zeros (all bits 0, so not -0.0)."""
    kept = values.view(torch.int16) != 0
    values, col, crow = values[kept], col[kept], offsets(kept)[crow]
    position = _positions(crow)
    parts = [
        _delta_part(rows, packing) for rows in _rows_of_tiles(packing, values, crow, col, shape, position)
    ]
    return _joined(packing, values, values.shape[0], shape, position, parts)


def piece_count(n: int) -> int:
    """Number of pieces, one per warp, that a row of tiles of a weight [n, k] is divided into."""
    return core.gpu_first_tiles(n, 0).size - 1


def _positions(crow: Tensor) -> Tensor:
    """int64 [n]: of each row within its tile."""
    n, size = crow.shape[0] - 1, core.gpu_tile
    lengths = crow.new_full((-(-n // size) * size,), -1)  # rows that there are not come last
    lengths[:n] = crow.diff()
    by_length = torch.argsort(lengths.view(-1, size), dim=1, descending=True, stable=True)
    dealt = torch.from_numpy(core.gpu_dealt_positions()).to(crow.device, torch.int64)
    return torch.empty_like(by_length).scatter_(1, by_length, dealt.expand_as(by_length)).flatten()[:n]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of tiles: of each weight its bits int16, and its number in them, in the packing's order."""

    bits: Tensor
    numbers: Tensor  # int64: tile * _PLACES + number within the tile
    count: int  # of rows of tiles
    first_tiles: Tensor  # int64 [pieces + 1], of each piece of a row, then the tiles of a row

    @property
    def tiles(self) -> int:
        return int(self.first_tiles[-1])


@dataclass(frozen=True, slots=True)
class _Part:
    """Their sections: units [row of tiles, piece], columns and streams."""

    units: Tensor
    columns: Tensor
    streams: Tensor


def _rows_of_tiles(
    packing: str, values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], position: Tensor
) -> Iterator[_Rows]:
    (n, k), size, device = shape, core.gpu_tile, values.device
    first_tiles = torch.from_numpy(core.gpu_first_tiles(n, k)).to(device)
    order = torch.from_numpy(core.gpu_tile_order(packing)).to(device, torch.int64).flatten()
    tiles = -(-k // size)
    step = max(1, _AT_ONCE // (size * size * max(tiles, 1))) * size
    bounds = [*crow[::step].tolist(), values.shape[0]]
    for first in range(0, n, step):
        begin, end = bounds[first // step], bounds[first // step + 1]
        last = min(n, first + step)
        lengths = crow[first : last + 1].diff()
        row = torch.arange(first, last, device=device).repeat_interleave(lengths, output_size=end - begin)
        column = col[begin:end].to(torch.int64)
        tile = (row - first) // size * tiles + column // size
        numbers = tile * _PLACES + order[position[row] * size + column % size]
        yield _Rows(values[begin:end].view(torch.int16), numbers, -(-(last - first) // size), first_tiles)


def _joined(
    packing: str, values: Tensor, nnz: int, shape: tuple[int, int], position: Tensor, parts: list[_Part]
) -> Tensor:
    starts = offsets(torch.cat([part.units.flatten() for part in parts])) if parts else position.new_zeros(1)
    blob = Blob(packing, values, shape, nnz, core.gpu_tile, int(starts[-1]))
    blob.section("order", torch.uint8, shape[0]).copy_(position)
    blob.section("starts", torch.int32, starts.numel()).copy_(starts)
    columns = streams = 0
    for part in parts:
        size = part.columns.nbytes
        blob.section("columns", torch.uint8, columns + size)[columns:] = part.columns.view(torch.uint8)
        columns += size
        size = part.streams.nbytes
        blob.section("values", torch.uint8, streams + size)[streams:] = part.streams.view(torch.uint8)
        streams += size
    return blob.finished()


def _bitmap_part(rows: _Rows) -> _Part:
    device, shape = rows.bits.device, (rows.count, rows.tiles, _LANES, _STRIPS)
    word, bit = rows.numbers // 32, rows.numbers % 32
    ones = torch.ones_like(bit) << bit
    words = torch.zeros(rows.count * rows.tiles * _WORDS, dtype=torch.int64, device=device)
    words.index_add_(0, word, ones)
    begin, furthest = _lane_starts(_bits_set(words).view(shape), rows.first_tiles)

    stream_rows = (furthest + 1) // 2
    first_row = offsets(stream_rows.flatten())
    # Where the values of each word are: their number in their lane's column of the stream, and the stream.
    piece = torch.bucketize(torch.arange(rows.tiles, device=device), rows.first_tiles[1:], right=True)
    stream = torch.arange(rows.count, device=device)[:, None] * furthest.shape[1] + piece
    value = begin.flatten()[word] + _bits_set(words[word] & (ones - 1))
    at = (first_row[stream.flatten()[word // _WORDS]] + value // 2) * _LANES + word // _STRIPS % _LANES
    streams = torch.zeros(int(first_row[-1]) * 2 * _LANES, dtype=torch.int16, device=device)
    streams[at * 2 + value % 2] = rows.bits
    return _Part(stream_rows * (_STREAM_ROW_BYTES // _UNIT_BYTES), words.to(torch.int32), streams)


def _lane_starts(counts: Tensor, first_tiles: Tensor) -> tuple[Tensor, Tensor]:
    """The rule by which lanes skip ahead, for counts [rows, tiles, lane, strip] of values of each word.

    Returns, as int64, the number of its first value in its lane, likewise, and the most values that a lane of
    each stream has, filling included, [rows, pieces].
    """
    tiles, pieces = counts.shape[1], first_tiles.shape[0] - 1
    longest = int(first_tiles.diff().max())
    # Pieces side by side; the last tile of some does not count.
    at = first_tiles[:-1, None] + torch.arange(longest, device=counts.device)
    there = at < first_tiles[1:, None]
    side_by_side = counts[:, at.clamp(max=tiles - 1)] * there[:, :, None, None]
    after = counts.new_zeros(counts.shape[0], pieces, _LANES)
    begins = torch.empty_like(side_by_side)
    for tile in range(longest):
        after = torch.maximum(after, after.amax(2, keepdim=True) - core.gpu_most_behind)
        ends = after[..., None] + side_by_side[:, :, tile].cumsum(3)
        begins[:, :, tile] = ends - side_by_side[:, :, tile]
        after = ends[..., -1]
    return begins[:, there], after.amax(2)


def _bits_set(words: Tensor) -> Tensor:
    """How many of the 32 low bits of each int64 are set (H. S. Warren, Hacker's Delight, 5-1)."""
    words = words - (words >> 1 & 0x55555555)
    words = (words & 0x33333333) + (words >> 2 & 0x33333333)
    words = words + (words >> 4) & 0x0F0F0F0F
    return words * 0x01010101 >> 24 & 0x3F


def _delta_part(rows: _Rows, packing: str) -> _Part:
    device, tiles = rows.bits.device, rows.count * rows.tiles
    bits, most = core.gpu_codes(packing)
    place, value = _with_fillers(rows, most)
    per_tile = torch.bincount(place // _PLACES, minlength=tiles)
    pairs = -(-per_tile // _PAIR_ENTRIES)
    code_bytes = _LANES * 2 * bits // 8
    tile_bytes = _FIRSTS_BYTES + pairs * (_STREAM_ROW_BYTES + code_bytes)

    # Lists of lanes one after the other, in pairs: of which tile, lane and entries.
    tile = torch.arange(tiles, device=device).repeat_interleave(pairs * _LANES)
    number = torch.arange(tile.shape[0], device=device) - offsets(pairs * _LANES)[tile]
    lane, pair = number // pairs[tile], number % pairs[tile]
    entry = number[:, None] * 2 + torch.arange(3, device=device)  # and the one behind
    entry = offsets(per_tile)[tile, None] + torch.minimum(entry, per_tile[tile, None] - 1)
    codes = place[entry].diff()
    codes[pair == pairs[tile] - 1, 1] = 0

    begin = offsets(tile_bytes)
    streams = torch.zeros(int(begin[-1]), dtype=torch.uint8, device=device)
    firsts = torch.from_numpy(core.gpu_place_bytes()).to(device, torch.int16)
    head = pair == 0
    halves = streams.view(torch.int16)
    halves[begin[tile[head]] // 2 + lane[head]] = firsts[place[entry[head, 0]] % _PLACES]
    at = begin[tile] + _FIRSTS_BYTES + pair * (_STREAM_ROW_BYTES + code_bytes)
    halves[at[:, None] // 2 + lane[:, None] * 2 + torch.arange(2, device=device)] = value[entry[:, :2]]
    at = at + _STREAM_ROW_BYTES
    if bits == 4:
        streams[at + lane] = (codes[:, 0] | codes[:, 1] << 4).to(torch.uint8)
    else:
        streams[at[:, None] + lane[:, None] * 2 + torch.arange(2, device=device)] = codes.to(torch.uint8)

    by_tile = offsets(tile_bytes.view(rows.count, -1).flatten())
    ends = torch.arange(rows.count, device=device)[:, None] * rows.tiles + rows.first_tiles
    return _Part(by_tile[ends].diff(dim=1) // _UNIT_BYTES, pairs.to(torch.uint8), streams)


def _with_fillers(rows: _Rows, most: int) -> tuple[Tensor, Tensor]:
    """Places, ascending, and values of the entries: weights, and zeros that lie at most `most` apart."""
    dense = torch.zeros(rows.count * rows.tiles * _PLACES, dtype=torch.int16, device=rows.bits.device)
    dense[rows.numbers] = rows.bits
    place = dense.nonzero()[:, 0]
    before = torch.cat((place[:1], place[:-1]))
    fillers = torch.where(place // _PLACES == before // _PLACES, (place - before - 1).clamp(min=0) // most, 0)
    which = torch.arange(place.shape[0], device=place.device).repeat_interleave(fillers + 1)
    step = torch.arange(which.shape[0], device=place.device) - offsets(fillers + 1)[which] + 1
    filling = step <= fillers[which]
    places = torch.where(filling, before[which] + step * most, place[which])
    return places, dense[places]
