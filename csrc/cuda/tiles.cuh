// Decodes tiles: a decoder gives a warp the fragments of each tile, strip by strip, as registers of the first operand
// of mma.m16n8k16. sparseinfer/gpu_tiles.h describes how tiles are stored.
//
// `use(strip, fragments)` gets fragments[s][register].
#pragma once

#include "cuda/common.cuh"
#include "cuda/ring.h"

namespace sparseinfer {
namespace gpu {

struct Tiles {
  const uint8_t* order;    // [n]
  const uint32_t* starts;  // [rows * pieces + 1]
  const char* columns;
  const char* values;
  int n, k, rows, tiles, pieces;  // rows of tiles, and tiles in each

  static Tiles of(const Args& a) {
    return {section<uint8_t>(a.blob, a.w.order),
            section<uint32_t>(a.blob, a.w.starts),
            section<char>(a.blob, a.w.columns),
            section<char>(a.blob, a.w.values),
            static_cast<int>(a.w.n),
            static_cast<int>(a.w.k),
            static_cast<int>(tile_rows(a.w.n)),
            static_cast<int>(tile_columns(a.w.k)),
            static_cast<int>(a.w.panels)};
  }
};

// One warp's share of W: a piece of a row of tiles, and its stream.
struct Piece {
  int first, last;  // tiles
  const char* stream;
  uint32_t bytes;

  __device__ __forceinline__ Piece(const Tiles& w, int row, int piece)
      : first(first_tile(piece, w.pieces, w.tiles)), last(first_tile(piece + 1, w.pieces, w.tiles)) {
    const uint32_t* start = w.starts + static_cast<int64_t>(row) * w.pieces + piece;
    const uint32_t begin = __ldg(start);
    stream = w.values + static_cast<int64_t>(begin) * kUnitBytes;
    bytes = (__ldg(start + 1) - begin) * kUnitBytes;
  }
};

// bitmap: each lane looks its own values up, one test and one load for each weight. A lane's bank is its own, so loads
// never conflict, however far the lanes have drifted apart.
template <class Ring>
class BitmapDecoder {
 public:
  static constexpr int kSharedBytes = Ring::kBytes;  // of a warp
  static constexpr int kBarrierBytes = Ring::kBarrierBytes;

  __device__ __forceinline__ BitmapDecoder(const Tiles& w, int row, const Piece& piece, uint32_t shared,
                                           uint32_t barriers)
      : ring_(shared, barriers, piece.stream, piece.bytes),
        origin_(uniform(shared)),
        words_(reinterpret_cast<const uint4*>(w.columns) + static_cast<int64_t>(row) * w.tiles * kLanes +
               threadIdx.x % kLanes),
        last_(piece.last) {
    if (piece.first < piece.last) next_ = load_now(words_ + piece.first * kLanes);
  }

  template <class Use>
  __device__ __forceinline__ void tile(int tile, Use&& use) {
    const uint32_t words[kStrips] = {next_.x, next_.y, next_.z, next_.w};
    if (tile + 1 < last_) next_ = load_now(words_ + (tile + 1) * kLanes);
    const int begin = lane_start(used_, furthest_);
    used_ = begin + __popc(words[0]) + __popc(words[1]) + __popc(words[2]) + __popc(words[3]);
    const int before = furthest_;
    furthest_ = __reduce_max_sync(~0u, used_);
    uint32_t at = value_byte(begin, threadIdx.x % kLanes) % Ring::kBytes;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      uint32_t fragments[kFragments][4];
      // Waiting strip by strip also keeps the compiler from using registers for all strips at once.
      const int furthest = min(before + (strip + 1) * kWordBits, furthest_);
      ring_.reach(static_cast<uint32_t>((furthest + 1) / 2) * kStreamRowBytes);
      expand(words[strip], at, fragments);
      use(strip, fragments);
    }
    ring_.release(static_cast<uint32_t>(max(furthest_ - kMostBehind, 0) / 2) * kStreamRowBytes);
  }

 private:
  static_assert((Ring::kBytes & (Ring::kBytes - 1)) == 0, "addresses wrap by a mask");

  // The values of a word, the first of which is at `at` of the ring, and zeros between them.
  __device__ __forceinline__ void expand(uint32_t word, uint32_t& at, uint32_t (&fragments)[kFragments][4]) const {
    const uint32_t own = threadIdx.x % kLanes * 4;
    // From one value of a lane to the next: 2 bytes on, or into the next row. Adding this much carries over the bits of
    // the lane, which are put back.
    const uint32_t step = kStreamRowBytes - 2 - own;
    constexpr uint32_t kKept = (Ring::kBytes - 1) & ~uint32_t{kStreamRowBytes - 4};
#pragma unroll
    for (int i = 0; i < 4 * kFragments; ++i) {
      uint32_t halves[2] = {0, 0};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (word >> (2 * i + half) & 1) {
          halves[half] = load_shared_u16(origin_ + at);
          at = ((at + step) & kKept) | own;
        }
      }
      fragments[i / 4][i % 4] = __byte_perm(halves[0], halves[1], 0x5410);
    }
  }

  Ring ring_;
  uint32_t origin_;
  const uint4* words_;
  int last_;
  uint4 next_;
  int used_ = 0, furthest_ = 0;
};

// delta: entries are stored to their places in a tile of zeros, which is read as fragments and cleared again. Accesses
// to shared memory bind: of 32 stored entries two or so meet in a bank.
template <class Ring, Kind kKind>
class DeltaDecoder {
 public:
  static constexpr int kSharedBytes = Ring::kBytes + kDecodedBytes;  // of a warp
  static constexpr int kBarrierBytes = Ring::kBarrierBytes;

  __device__ __forceinline__ DeltaDecoder(const Tiles& w, int row, const Piece& piece, uint32_t shared,
                                          uint32_t barriers)
      : ring_(shared, barriers, piece.stream, piece.bytes),
        origin_(uniform(shared)),
        pairs_(reinterpret_cast<const uint8_t*>(w.columns) + static_cast<int64_t>(row) * w.tiles),
        last_(piece.last) {
    const uint32_t own = decoded() + threadIdx.x % kLanes * 16;
#pragma unroll
    for (int i = 0; i < kDecodedBytes / (16 * kLanes); ++i) {
      store_shared(own + i * 16 * kLanes, make_uint4(0, 0, 0, 0));
    }
    __syncwarp();
    if (piece.first < piece.last) next_ = __ldg(pairs_ + piece.first);
  }

  template <class Use>
  __device__ __forceinline__ void tile(int tile, Use&& use) {
    const int pairs = next_;
    if (tile + 1 < last_) next_ = __ldg(pairs_ + tile + 1);
    const uint32_t begin = at_;
    const bool few = pairs <= kFewPairs;
    scatter<true>(begin, pairs);
    __syncwarp();
    const uint32_t own = decoded() + threadIdx.x % kLanes * 16;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      uint32_t fragments[kFragments][4];
#pragma unroll
      for (int s = 0; s < kFragments; ++s) {
        load_shared(own + (strip * kFragments + s) * 16 * kLanes, fragments[s]);
        if (!few) store_shared(own + (strip * kFragments + s) * 16 * kLanes, make_uint4(0, 0, 0, 0));
      }
      use(strip, fragments);
    }
    __syncwarp();
    if (few) {
      scatter<false>(begin, pairs);
      __syncwarp();
    }
    at_ = begin + kFirstsBytes + static_cast<uint32_t>(pairs) * kPairBytes;
    ring_.release(at_);
  }

 private:
  static constexpr uint32_t kPairBytes = pair_bytes(kKind);
  static constexpr int kBits = code_bits(kKind);
  // Up to here what was stored is cleared entry by entry, in fewer accesses than all of the tile takes.
  static constexpr int kFewPairs = 8;
  static_assert(kFewPairs <= kRunPairs, "its entries are still in the ring");
  static constexpr int kPairsAtOnce = 4;

  __device__ __forceinline__ uint32_t decoded() const { return origin_ + Ring::kBytes; }

  // Stores each entry to its place, or clears the place.
  template <bool kStores>
  __device__ __forceinline__ void scatter(uint32_t begin, int pairs) {
    const uint32_t lane = threadIdx.x % kLanes;
    uint32_t end = begin + kFirstsBytes;
    if (kStores) ring_.reach(end);
    uint32_t to = load_shared_u16(origin_ + (begin + 2 * lane) % Ring::kBytes);
    uint32_t values_at = (end + 4 * lane) % Ring::kBytes;
    uint32_t codes_at = (end + kStreamRowBytes + lane * kBits / 4) % Ring::kBytes;
    for (int first = 0; first < pairs; first += kRunPairs) {
      int left = min(pairs - first, kRunPairs);
      end += static_cast<uint32_t>(left) * kPairBytes;
      if (kStores) ring_.reach(end);
#pragma unroll 1
      for (; left >= kPairsAtOnce; left -= kPairsAtOnce) move<kStores, kPairsAtOnce>(values_at, codes_at, to);
#pragma unroll 1
      for (; left > 0; --left) move<kStores, 1>(values_at, codes_at, to);
      // What is cleared entry by entry is read once more.
      if (kStores && pairs > kFewPairs) ring_.release(end);
    }
  }

  // Some pairs: all of them are loaded before the first is stored.
  template <bool kStores, int kPairs>
  __device__ __forceinline__ void move(uint32_t& values_at, uint32_t& codes_at, uint32_t& to) const {
    uint32_t values[kPairs] = {}, codes[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (kStores) values[i] = load_shared(origin_ + values_at);
      codes[i] = kBits == 4 ? load_shared_u8(origin_ + codes_at) : load_shared_u16(origin_ + codes_at);
      values_at = (values_at + kPairBytes) % Ring::kBytes;
      codes_at = (codes_at + kPairBytes) % Ring::kBytes;
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      store_shared_u16(decoded() + to, values[i]);
      to = next_byte(to, unfolded(codes[i] & ((1u << kBits) - 1)));
      store_shared_u16(decoded() + to, values[i] >> 16);
      to = next_byte(to, unfolded(codes[i] >> kBits));
    }
  }

  // Keeps the compiler from shifting before it masks: afterwards a shift is part of an addition.
  static __device__ __forceinline__ uint32_t unfolded(uint32_t v) {
    asm("" : "+r"(v));
    return v;
  }

  Ring ring_;
  uint32_t origin_;
  const uint8_t* pairs_;
  uint32_t at_ = 0;
  int last_, next_ = 0;
};

// Which decoder reads a packing through which ring.
template <template <int> class Ring, Kind kKind>
struct DecoderOf {
  using Type = DeltaDecoder<Ring<kDeltaChunks>, kKind>;
};
template <template <int> class Ring>
struct DecoderOf<Ring, Kind::kBitmap> {
  using Type = BitmapDecoder<Ring<kBitmapChunks>>;
};

}  // namespace gpu
}  // namespace sparseinfer
