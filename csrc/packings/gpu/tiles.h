// Common to the tiled packings (gpu_tiles.h): W in tiles of 64 x 64, rows of tiles divided into pieces, each piece one
// stream.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <vector>

#include "packings/gpu/packing.h"
#include "sparseinfer/gpu_tiles.h"

namespace sparseinfer {
namespace gpu {

constexpr int64_t kWords = kPlaces / 32;  // of a tile

// Tiles of a row of tiles that one warp decodes, and its stream.
struct Piece {
  int64_t first_tile, tiles;
  const char* stream;
  int64_t bytes;
  const char* columns;  // of its first tile

  const uint32_t* words() const { return reinterpret_cast<const uint32_t*>(columns); }
  int pairs(int64_t tile) const { return static_cast<uint8_t>(columns[tile]); }
};

// A tile as it lies in the matrix, but with its rows at their positions.
struct Tile {
  std::array<uint64_t, kTileRows> stored;  // bit c: column c
  std::array<std::array<uint16_t, kTileColumns>, kTileRows> values;

  void put(int position, int column, uint16_t value) {
    stored[static_cast<size_t>(position)] |= uint64_t{1} << column;
    values[static_cast<size_t>(position)][static_cast<size_t>(column)] = value;
  }
};

using TakenPositions = std::bitset<kTileRows>;  // whether a row of the matrix is at each position of a row of tiles

struct TiledPacking {
  int64_t column_bytes;  // of one tile, in the section `columns`

  // Requires an intact stream, of weights within the matrix; returns how many.
  int64_t (*check)(const Header& h, const Piece& piece, const TakenPositions& taken);

  // Puts the weights of a piece into its tiles, which are empty.
  void (*decode)(const Header& h, const Piece& piece, std::vector<Tile>& tiles);
};

void lay_out_tiles(const TiledPacking& packing, Header& h, SectionPlaces& places);
void check_tiles(const TiledPacking& packing, const Header& h);
void unpack_tiles(const TiledPacking& packing, const Header& h, int64_t* crow, int32_t* col, char* values);

// The Packing of a TiledPacking.
template <const TiledPacking& kTiled>
constexpr Packing tiled_packing() {
  return {
      [](Header& h, SectionPlaces& places) { lay_out_tiles(kTiled, h, places); },
      [](const Header& h) { check_tiles(kTiled, h); },
      [](const Header& h, int64_t* crow, int32_t* col, char* values) { unpack_tiles(kTiled, h, crow, col, values); }};
}

}  // namespace gpu
}  // namespace sparseinfer
