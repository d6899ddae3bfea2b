#include "sparseinfer/gpu_tiles.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cstring>
#include <vector>

#include "core/gpu_checks.h"

namespace sparseinfer {
namespace gpu {

namespace {

constexpr int kMostPairs = kPlaces / (2 * kLanes);
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

Piece piece_of(const Header& h, int64_t tile_row, int64_t piece) {
  const int64_t tiles = tile_columns(h.k), first = first_tile(piece, h.panels, tiles);
  const uint32_t* start = section<uint32_t>(&h, h.starts) + tile_row * h.panels + piece;
  const int64_t column_bytes = h.kind == Kind::kBitmap ? kWords * 4 : 1;
  return {first, first_tile(piece + 1, h.panels, tiles) - first,
          section<char>(&h, h.values) + int64_t{start[0]} * kUnitBytes, (int64_t{start[1]} - start[0]) * kUnitBytes,
          section<char>(&h, h.columns) + (tile_row * tiles + first) * column_bytes};
}

// Whether a row of the matrix is at each position of a row of tiles.
std::bitset<kTileRows> taken_positions(const Header& h, int64_t tile_row) {
  std::bitset<kTileRows> taken;
  for (int64_t row = tile_row * kTileRows; row < std::min(h.n, (tile_row + 1) * kTileRows); ++row) {
    const int position = section<uint8_t>(&h, h.order)[row];
    require(position < kTileRows && !taken[static_cast<size_t>(position)],
            "each row of a tile at a position of its own");
    taken[static_cast<size_t>(position)] = true;
  }
  return taken;
}

// A tile as it lies in the matrix, but with its rows at their positions.
struct Tile {
  std::array<uint64_t, kTileRows> stored;  // bit c: column c
  std::array<std::array<uint16_t, kTileColumns>, kTileRows> values;

  void put(int position, int column, uint16_t value) {
    stored[static_cast<size_t>(position)] |= uint64_t{1} << column;
    values[static_cast<size_t>(position)][static_cast<size_t>(column)] = value;
  }
};

// bitmap ------------------------------------------------------------------------------------------------------------

// Where the values of each lane for each word begin, in the order in which a warp takes them, and the rows of the
// stream.
struct LaneStarts {
  std::vector<int> first;  // [tiles][strip][lane]
  int64_t rows;
};

uint32_t word_of(const Piece& piece, int64_t tile, int lane, int strip) {
  return piece.words()[(tile * kLanes + lane) * kStrips + strip];
}

LaneStarts lane_starts(const Piece& piece) {
  LaneStarts starts;
  starts.first.resize(static_cast<size_t>(piece.tiles * kWords));
  std::array<int, kLanes> after{};
  int furthest = 0;
  for (int64_t tile = 0; tile < piece.tiles; ++tile) {
    for (int lane = 0; lane < kLanes; ++lane) {
      int& at = after[static_cast<size_t>(lane)];
      at = lane_start(at, furthest);
      for (int strip = 0; strip < kStrips; ++strip) {
        starts.first[static_cast<size_t>((tile * kStrips + strip) * kLanes + lane)] = at;
        at += static_cast<int>(std::bitset<kWordBits>(word_of(piece, tile, lane, strip)).count());
      }
    }
    furthest = *std::max_element(after.begin(), after.end());
  }
  starts.rows = (int64_t{furthest} + 1) / 2;
  return starts;
}

// Calls visit(tile, lane, strip, bit) for each weight of a piece, a word after the other.
template <class Visit>
void visit_words(const Piece& piece, Visit visit) {
  for (int64_t tile = 0; tile < piece.tiles; ++tile) {
    for (int strip = 0; strip < kStrips; ++strip) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const uint32_t word = word_of(piece, tile, lane, strip);
        for (int bit = 0; bit < 32; ++bit) {
          if (word >> bit & 1) visit(tile, lane, strip, bit);
        }
      }
    }
  }
}

int64_t check_bitmap(const Header& h, const Piece& piece, const std::bitset<kTileRows>& taken) {
  require(lane_starts(piece).rows * kStreamRowBytes == piece.bytes, "streams as long as their words need");
  int64_t stored = 0;
  visit_words(piece, [&](int64_t tile, int lane, int strip, int bit) {
    const int64_t column = (piece.first_tile + tile) * kTileColumns + weight_column(lane, bit);
    require(taken[static_cast<size_t>(weight_position(lane, strip, bit))] && column < h.k, "bits within the matrix");
    ++stored;
  });
  return stored;
}

void decode_bitmap(const Piece& piece, std::vector<Tile>& tiles) {
  std::vector<int> next = lane_starts(piece).first;
  visit_words(piece, [&](int64_t tile, int lane, int strip, int bit) {
    int& at = next[static_cast<size_t>((tile * kStrips + strip) * kLanes + lane)];
    uint16_t value;
    std::memcpy(&value, piece.stream + value_byte(at++, lane), sizeof value);
    tiles[static_cast<size_t>(tile)].put(weight_position(lane, strip, bit), weight_column(lane, bit), value);
  });
}

// delta -------------------------------------------------------------------------------------------------------------

struct Weight {
  uint8_t position, column;
};

std::array<Weight, kPlaces> weights_at_places() {
  std::array<Weight, kPlaces> found{};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int strip = 0; strip < kStrips; ++strip) {
      for (int bit = 0; bit < 32; ++bit) {
        found[static_cast<size_t>(place(lane, strip, bit))] = {static_cast<uint8_t>(weight_position(lane, strip, bit)),
                                                               static_cast<uint8_t>(weight_column(lane, bit))};
      }
    }
  }
  return found;
}

Weight weight_at(int place) {
  static const std::array<Weight, kPlaces> weights = weights_at_places();
  return weights[static_cast<size_t>(place)];
}

int place_at(uint32_t byte) { return static_cast<int>(byte % kStreamRowBytes / 2 * 64 + byte / kStreamRowBytes); }

// A tile in a stream of deltas.
struct Entries {
  const char* data;
  Kind kind;
  int pairs;

  int64_t bytes() const { return kFirstsBytes + int64_t{pairs} * pair_bytes(kind); }
  const char* pair(int entry) const { return data + kFirstsBytes + entry / 2 * pair_bytes(kind); }
  uint16_t first(int lane) const { return reinterpret_cast<const uint16_t*>(data)[lane]; }
  uint16_t value(int lane, int entry) const {
    return reinterpret_cast<const uint16_t*>(pair(entry))[2 * lane + entry % 2];
  }
  int code(int lane, int entry) const {
    const char* codes = pair(entry) + kStreamRowBytes;
    if (kind == Kind::kDelta4) return static_cast<uint8_t>(codes[lane]) >> (4 * (entry % 2)) & 15;
    return static_cast<uint8_t>(codes[2 * lane + entry % 2]);
  }
};

int64_t check_delta(const Header& h, const Piece& piece, const std::bitset<kTileRows>& taken) {
  int64_t bytes = 0;
  for (int64_t tile = 0; tile < piece.tiles; ++tile) {
    require(piece.pairs(tile) <= kMostPairs, "at most 64 pairs of entries a lane");
    bytes += Entries{nullptr, h.kind, piece.pairs(tile)}.bytes();
  }
  require(bytes == piece.bytes, "streams as long as their tiles need");
  int64_t stored = 0;
  const char* at = piece.stream;
  for (int64_t tile = 0; tile < piece.tiles; ++tile) {
    const Entries entries{at, h.kind, piece.pairs(tile)};
    at += entries.bytes();
    int previous = -1;
    uint16_t last = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t byte = entries.first(lane);
      require(byte % 2 == 0 && byte < kDecodedBytes, "first bytes of values in a tile");
      for (int entry = 0; entry < 2 * entries.pairs; ++entry) {
        const int here = place_at(byte), code = entries.code(lane, entry);
        const uint16_t value = entries.value(lane, entry);
        require(here > previous || (here == previous && value == last), "entries in the order of their places");
        if (here > previous && value != 0) {
          const Weight w = weight_at(here);
          const int64_t column = (piece.first_tile + tile) * kTileColumns + w.column;
          require(taken[w.position] && column < h.k, "values within the matrix");
          ++stored;
        }
        require(code <= max_distance(h.kind) && here + code < kPlaces, "distances within a tile");
        require(code == 0 || entry + 1 < 2 * entries.pairs, "no distance behind a lane's last entry");
        previous = here;
        last = value;
        byte = next_byte(byte, static_cast<uint32_t>(code));
      }
    }
  }
  return stored;
}

void decode_delta(Kind kind, const Piece& piece, std::vector<Tile>& tiles) {
  const char* at = piece.stream;
  for (int64_t tile = 0; tile < piece.tiles; ++tile) {
    const Entries entries{at, kind, piece.pairs(tile)};
    at += entries.bytes();
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t byte = entries.first(lane);
      for (int entry = 0; entry < 2 * entries.pairs; ++entry) {
        const Weight w = weight_at(place_at(byte));
        const uint16_t value = entries.value(lane, entry);
        if (value != 0) tiles[static_cast<size_t>(tile)].put(w.position, w.column, value);
        byte = next_byte(byte, static_cast<uint32_t>(entries.code(lane, entry)));
      }
    }
  }
}

}  // namespace

void check_tiles(const Header& h) {
  const auto* starts = section<uint32_t>(&h, h.starts);
  const int64_t streams = tile_rows(h.n) * h.panels;
  require(starts[0] == 0, "streams that start at 0");
  for (int64_t i = 0; i < streams; ++i) require(starts[i] <= starts[i + 1], "ascending starts of streams");
  require(starts[streams] == h.units, "streams that end with the last unit");
  int64_t stored = 0;
  for (int64_t row = 0; row < tile_rows(h.n); ++row) {
    const std::bitset<kTileRows> taken = taken_positions(h, row);
    for (int64_t i = 0; i < h.panels; ++i) {
      const Piece piece = piece_of(h, row, i);
      stored += h.kind == Kind::kBitmap ? check_bitmap(h, piece, taken) : check_delta(h, piece, taken);
    }
  }
  require(stored == h.nnz, "as many values as the header says");
}

void unpack_tiles(const Header& h, int64_t* crow, int32_t* col, char* values) {
  const auto* order = section<uint8_t>(&h, h.order);
  int64_t at = 0;
  crow[0] = 0;
  std::vector<Tile> tiles;
  for (int64_t tile_row = 0; tile_row < tile_rows(h.n); ++tile_row) {
    std::array<std::vector<int32_t>, kTileRows> columns;
    std::array<std::vector<uint16_t>, kTileRows> found;
    for (int64_t i = 0; i < h.panels; ++i) {
      const Piece piece = piece_of(h, tile_row, i);
      tiles.assign(static_cast<size_t>(piece.tiles), Tile{});
      h.kind == Kind::kBitmap ? decode_bitmap(piece, tiles) : decode_delta(h.kind, piece, tiles);
      for (int64_t tile = 0; tile < piece.tiles; ++tile) {
        const Tile& t = tiles[static_cast<size_t>(tile)];
        for (size_t position = 0; position < kTileRows; ++position) {
          for (size_t c = 0; c < kTileColumns; ++c) {
            if ((t.stored[position] >> c & 1) == 0) continue;
            columns[position].push_back(static_cast<int32_t>((piece.first_tile + tile) * kTileColumns) +
                                        static_cast<int32_t>(c));
            found[position].push_back(t.values[position][c]);
          }
        }
      }
    }
    for (int64_t row = tile_row * kTileRows; row < std::min(h.n, (tile_row + 1) * kTileRows); ++row) {
      const auto& own_columns = columns[order[row]];
      const auto& own_values = found[order[row]];
      std::copy(own_columns.begin(), own_columns.end(), col + at);
      std::copy(own_values.begin(), own_values.end(), reinterpret_cast<uint16_t*>(values) + at);
      at += static_cast<int64_t>(own_columns.size());
      crow[row + 1] = at;
    }
  }
}

}  // namespace gpu
}  // namespace sparseinfer
