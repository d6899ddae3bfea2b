// The tiled packings of the CUDA kernels (bitmap, delta4, delta8): unstructured 16-bit weights, which kernels decode
// into operands of tensor cores.
//
// W is divided into tiles of 64 x 64. A warp decodes a whole tile: four strips of 16 rows, each of four fragments, the
// first operands of mma.m16n8k16. Every lane holds 32 weights of a strip, one for each bit of a word, and 128 of a
// tile. Columns of a tile may be assigned to the k of a product in any order if x uses the same: lane q of four holds
// 16 consecutive columns of W, so that it loads the same columns of x as two vectors of 16 bytes.
//
// A row of tiles is divided into `panels` pieces of consecutive tiles, one per warp. Each piece is one stream of bytes
// that a warp reads from beginning to end, through a ring buffer in shared memory.
//
// Weights that are not stored are multiplied as 0, as in a dense product: a non-finite x makes every output of its
// token non-finite.
//
//   order    uint8  [n]            position within its tile of each row: the rows of a tile, those with most weights
//                                  first, are distributed round-robin to the 8 groups of 4 lanes (see dealt_position)
//   starts   uint32 [rows of tiles * panels + 1]   first unit, of 16 bytes, of each stream
//   columns  bitmap: uint32 [rows of tiles][tiles][lane][strip], the words: which weights are stored
//            delta:  uint8  [rows of tiles][tiles], pairs of entries per lane
//   values   the streams
//
// bitmap   A stream is rows of 128 bytes, one word of two values for each lane: bank `lane` of shared memory belongs to
//          one lane, and the values of a lane, in the order of its bits, are in consecutive rows. Lanes do not advance
//          equally fast. No lane may fall behind the furthest one by more than kMostBehind values: before each tile it
//          skips ahead (see lane_start), and the skipped values are padding.
//
// delta    A stream has, for each tile, the byte of each lane's first entry, uint16 [32] (see place_byte), and then for
//          each pair of entries the values, uint32 [32], and the codes: uint8 [32] of 4 bits each or uint16 [32] of 8,
//          the first of the pair in the low half. The entries of a tile, in the order of their places, are divided
//          evenly: lane 0 has the first ones. A code is the distance to the lane's next entry; where it would be more
//          than max_distance, an entry with value 0 is inserted. The lists of the last lanes are padded with copies of
//          the tile's last entry, at distance 0. The code of a lane's last entry is 0. An empty tile has no entries,
//          but its 32 first bytes, all 0. To distinguish inserted entries from weights, a weight whose bits are
//          all 0 is not stored: nnz counts the others, among them -0.0. The bitmap counts its bits, whatever the values
//          are.
#pragma once

#include "sparseinfer/gpu_packings.h"

namespace sparseinfer {
namespace gpu {

constexpr int kLanes = 32;
constexpr int kTileRows = 64;
constexpr int kTileColumns = 64;
constexpr int kStrips = 4;     // of 16 rows
constexpr int kFragments = 4;  // of 16 columns, of a strip
constexpr int kWordBits = 32;
constexpr int kUnitBytes = 16;  // in which streams are counted
constexpr int kStreamRowBytes = 4 * kLanes;

SI_HD constexpr int64_t tile_rows(int64_t n) { return (n + kTileRows - 1) / kTileRows; }
SI_HD constexpr int64_t tile_columns(int64_t k) { return (k + kTileColumns - 1) / kTileColumns; }

// Pieces of a row of tiles, a multiple of 8: more where there are few rows, to keep a large GPU busy.
SI_HD constexpr int64_t piece_count(int64_t n) { return tile_rows(n) < 132 ? 16 : 8; }
// Tiles [first_tile(piece), first_tile(piece + 1)) of `tiles` are those of a piece.
template <class I>
SI_HD constexpr I first_tile(I piece, I pieces, I tiles) {
  return piece * tiles / pieces;
}

// Position of the row that is the rank-th longest of a tile: round by round each group of lanes gets one, forwards and
// backwards, so that the groups have about equally many weights.
SI_HD constexpr int dealt_position(int rank) {
  const int round = rank / 8, group = static_cast<int>(dealt_item(round, rank % 8, 8)) - 8 * round;
  return 8 * round + group;
}

// Position and column within the tile of a weight: bit `bit` of a lane's word for a strip. Bits 8s to 8s + 7 are the
// four registers of fragment s, low half first (PTX ISA, "Matrix Fragments for mma.m16n8k16"): rows g and g + 8 for the
// first two columns, then for the next two.
SI_HD constexpr int weight_position(int lane, int strip, int bit) { return 16 * strip + lane / 4 + bit / 2 % 2 * 8; }
SI_HD constexpr int weight_column(int lane, int bit) {
  return 16 * (lane % 4) + 4 * (bit / 8) + bit / 4 % 2 * 2 + bit % 2;
}

// bitmap ------------------------------------------------------------------------------------------------------------

constexpr int kMostBehind = 32;

// Where a lane's values for the next tile begin, if it has used those before `after`, and the furthest lane those
// before `furthest`.
SI_HD constexpr int lane_start(int after, int furthest) {
  return after > furthest - kMostBehind ? after : furthest - kMostBehind;
}
// Byte of a stream at which a lane's value lies.
SI_HD constexpr uint32_t value_byte(int value, int lane) {
  return static_cast<uint32_t>(value / 2) * kStreamRowBytes + static_cast<uint32_t>(lane * 4 + value % 2 * 2);
}

// delta -------------------------------------------------------------------------------------------------------------

constexpr int kDecodedBytes = kTileRows * kTileColumns * 2;
constexpr int kPlaces = kTileRows * kTileColumns;

SI_HD constexpr int code_bits(Kind kind) { return kind == Kind::kDelta4 ? 4 : 8; }
SI_HD constexpr int max_distance(Kind kind) { return kind == Kind::kDelta4 ? 15 : 64; }
SI_HD constexpr int pair_bytes(Kind kind) { return kStreamRowBytes + kLanes * 2 * code_bits(kind) / 8; }
constexpr int kFirstsBytes = 2 * kLanes;

// A tile lies in shared memory as its fragments are loaded: fragment f = 4 * strip + s, of each lane 16 bytes. Places
// count it bank by bank, so that lanes which have evenly dealt entries store to different banks most of the time.
SI_HD constexpr int place(int lane, int strip, int bit) {
  const int bank = lane % 8 * 4 + bit / 2 % 4, row = (4 * strip + bit / 8) * 4 + lane / 8;
  return (bank * 2 + bit % 2) * 64 + row;
}
SI_HD constexpr uint32_t place_byte(int place) {
  return static_cast<uint32_t>(place % 64 * kStreamRowBytes + place / 64 * 2);
}
// The byte of the place `distance` further on, at most 64.
SI_HD constexpr uint32_t next_byte(uint32_t byte, uint32_t distance) {
  const uint32_t next = byte + distance * kStreamRowBytes;
  return next < kDecodedBytes ? next : next - (kDecodedBytes - 2);
}

}  // namespace gpu
}  // namespace sparseinfer
