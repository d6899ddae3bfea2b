// The GPU packings `delta4` and `delta8`: for each tile the first place of each lane, then values and the distances
// between them, in codes of 4 or 8 bits (gpu_tiles.h).
#include <array>

#include "packings/gpu/tiles.h"

namespace sparseinfer {
namespace gpu {
namespace {

constexpr int kMostPairs = kPlaces / (2 * kLanes);

struct Weight {
  uint8_t position, column;
};

std::array<Weight, kPlaces> weights_at_places() {
  std::array<Weight, kPlaces> weights{};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int strip = 0; strip < kStrips; ++strip) {
      for (int bit = 0; bit < 32; ++bit) {
        weights[static_cast<size_t>(place(lane, strip, bit))] = {
            static_cast<uint8_t>(weight_position(lane, strip, bit)), static_cast<uint8_t>(weight_column(lane, bit))};
      }
    }
  }
  return weights;
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

int64_t check(const Header& h, const Piece& piece, const TakenPositions& taken) {
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

void decode(const Header& h, const Piece& piece, std::vector<Tile>& tiles) {
  const char* at = piece.stream;
  for (int64_t tile = 0; tile < piece.tiles; ++tile) {
    const Entries entries{at, h.kind, piece.pairs(tile)};
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

constexpr TiledPacking kTiled{1, check, decode};

}  // namespace

constexpr Packing delta4_packing = tiled_packing<kTiled>();
constexpr Packing delta8_packing = tiled_packing<kTiled>();

}  // namespace gpu
}  // namespace sparseinfer
