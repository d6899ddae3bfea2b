// Iterates over the pieces and tiles of a tiled packing (gpu_tiles.h), and converts tiles back to rows.
#include "packings/gpu/tiles.h"

#include <algorithm>

namespace sparseinfer {
namespace gpu {
namespace {

// Exclusive: a stream, at most an eighth of a row of tiles, then has fewer than 2^32 bytes.
constexpr int64_t kMaxTiledColumns = int64_t{1} << 27;

Piece piece_of(const TiledPacking& packing, const Header& h, int64_t tile_row, int64_t piece) {
  const int64_t tiles = tile_columns(h.k), first = first_tile(piece, h.panels, tiles);
  const uint32_t* start = section<uint32_t>(&h, h.starts) + tile_row * h.panels + piece;
  return {first, first_tile(piece + 1, h.panels, tiles) - first,
          section<char>(&h, h.values) + int64_t{start[0]} * kUnitBytes, (int64_t{start[1]} - start[0]) * kUnitBytes,
          section<char>(&h, h.columns) + (tile_row * tiles + first) * packing.column_bytes};
}

TakenPositions taken_positions(const Header& h, int64_t tile_row) {
  TakenPositions taken;
  for (int64_t row = tile_row * kTileRows; row < std::min(h.n, (tile_row + 1) * kTileRows); ++row) {
    const int position = section<uint8_t>(&h, h.order)[row];
    require(position < kTileRows && !taken[static_cast<size_t>(position)],
            "each row of a tile at a position of its own");
    taken[static_cast<size_t>(position)] = true;
  }
  return taken;
}

}  // namespace

void lay_out_tiles(const TiledPacking& packing, Header& h, SectionPlaces& places) {
  const int64_t value_bytes = dtype_bytes(h.dtype);
  if (h.block != kTileRows) refuse("block 64 of tiles", h.block);
  if (value_bytes != 2) throw std::invalid_argument("packed: expected bf16 or f16 tiles, got f32");
  if (h.k >= kMaxTiledColumns) refuse("k in [0, 2^27) of tiles", h.k);
  if (h.nnz > h.units * kUnitBytes / value_bytes) refuse("nnz that the streams hold", h.nnz);
  h.panels = piece_count(h.n);
  h.order = places.add(h.n);
  h.starts = places.add((tile_rows(h.n) * h.panels + 1) * 4);
  h.columns = places.add(tile_rows(h.n) * tile_columns(h.k) * packing.column_bytes);
  h.values = places.add(h.units * kUnitBytes);
}

void check_tiles(const TiledPacking& packing, const Header& h) {
  const auto* starts = section<uint32_t>(&h, h.starts);
  const int64_t streams = tile_rows(h.n) * h.panels;
  require(starts[0] == 0, "streams that start at 0");
  for (int64_t i = 0; i < streams; ++i) require(starts[i] <= starts[i + 1], "ascending starts of streams");
  require(starts[streams] == h.units, "streams that end with the last unit");
  int64_t stored = 0;
  for (int64_t row = 0; row < tile_rows(h.n); ++row) {
    const TakenPositions taken = taken_positions(h, row);
    for (int64_t i = 0; i < h.panels; ++i) {
      stored += packing.check(h, piece_of(packing, h, row, i), taken);
    }
  }
  require(stored == h.nnz, "as many values as the header says");
}

void unpack_tiles(const TiledPacking& packing, const Header& h, int64_t* crow, int32_t* col, char* values) {
  const auto* order = section<uint8_t>(&h, h.order);
  int64_t at = 0;
  crow[0] = 0;
  std::vector<Tile> tiles;
  for (int64_t tile_row = 0; tile_row < tile_rows(h.n); ++tile_row) {
    std::array<std::vector<int32_t>, kTileRows> columns;
    std::array<std::vector<uint16_t>, kTileRows> weights;
    for (int64_t i = 0; i < h.panels; ++i) {
      const Piece piece = piece_of(packing, h, tile_row, i);
      tiles.assign(static_cast<size_t>(piece.tiles), Tile{});
      packing.decode(h, piece, tiles);
      for (int64_t tile = 0; tile < piece.tiles; ++tile) {
        const Tile& t = tiles[static_cast<size_t>(tile)];
        for (size_t position = 0; position < kTileRows; ++position) {
          for (size_t c = 0; c < kTileColumns; ++c) {
            if ((t.stored[position] >> c & 1) == 0) continue;
            columns[position].push_back(static_cast<int32_t>((piece.first_tile + tile) * kTileColumns) +
                                        static_cast<int32_t>(c));
            weights[position].push_back(t.values[position][c]);
          }
        }
      }
    }
    for (int64_t row = tile_row * kTileRows; row < std::min(h.n, (tile_row + 1) * kTileRows); ++row) {
      const auto& row_columns = columns[order[row]];
      const auto& row_values = weights[order[row]];
      std::copy(row_columns.begin(), row_columns.end(), col + at);
      std::copy(row_values.begin(), row_values.end(), reinterpret_cast<uint16_t*>(values) + at);
      at += static_cast<int64_t>(row_columns.size());
      crow[row + 1] = at;
    }
  }
}

}  // namespace gpu
}  // namespace sparseinfer
