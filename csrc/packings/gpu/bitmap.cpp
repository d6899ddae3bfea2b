// The GPU packing `bitmap`: a word of bits for each lane and strip of a tile, and a stream with the values of each lane
// in consecutive rows (gpu_tiles.h).
#include <algorithm>
#include <cstring>

#include "packings/gpu/tiles.h"

namespace sparseinfer {
namespace gpu {
namespace {

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

int64_t check(const Header& h, const Piece& piece, const TakenPositions& taken) {
  require(lane_starts(piece).rows * kStreamRowBytes == piece.bytes, "streams as long as their words need");
  int64_t stored = 0;
  visit_words(piece, [&](int64_t tile, int lane, int strip, int bit) {
    const int64_t column = (piece.first_tile + tile) * kTileColumns + weight_column(lane, bit);
    require(taken[static_cast<size_t>(weight_position(lane, strip, bit))] && column < h.k, "bits within the matrix");
    ++stored;
  });
  return stored;
}

void decode(const Header&, const Piece& piece, std::vector<Tile>& tiles) {
  std::vector<int> next = lane_starts(piece).first;
  visit_words(piece, [&](int64_t tile, int lane, int strip, int bit) {
    int& at = next[static_cast<size_t>((tile * kStrips + strip) * kLanes + lane)];
    uint16_t value;
    std::memcpy(&value, piece.stream + value_byte(at++, lane), sizeof value);
    tiles[static_cast<size_t>(tile)].put(weight_position(lane, strip, bit), weight_column(lane, bit), value);
  });
}

constexpr TiledPacking kTiled{kWords * 4, check, decode};

}  // namespace

constexpr Packing bitmap_packing = tiled_packing<kTiled>();

}  // namespace gpu
}  // namespace sparseinfer
