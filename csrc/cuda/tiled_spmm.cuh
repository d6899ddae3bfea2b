// y = activation(x . W^T + bias) for the tiled packings: W is the first operand of mma.m16n8k16, so that 8 tokens are
// enough to fill it. Each warp computes its own piece of a row of tiles, times kTokens tokens; warps share nothing
// until their sums are added, in an order that depends only on the shape.
//
// A Cluster is a single block on sm80, and 8 blocks on sm90, which add their sums through each other's shared memory. A
// cluster computes all pieces of some rows of tiles. On sm90 the warps of a block compute the same pieces of several
// rows, so that x loaded by one warp is in the L1 cache for the others.
#pragma once

#include "cuda/tiles.cuh"

namespace sparseinfer {
namespace gpu {

constexpr int kTiledWarps = 4;

struct TiledSpmm {
  Tiles w;
  const void* x;
  int64_t ldx;
  Output out;
  int sharers, rows_at_once;  // warps of a block that share a row of tiles, and rows that a block has
  int token_tiles;

  template <class Cluster, int kTokens>
  static TiledSpmm of(const Args& args) {
    const Tiles w = Tiles::of(args);
    const int sharers = Cluster::sharers(w.pieces);
    return {w,
            args.x,
            args.ldx,
            Output::of(args),
            sharers,
            kTiledWarps / sharers,
            static_cast<int>((args.m + kTokens - 1) / kTokens)};
  }

  int64_t clusters() const { return int64_t{(w.rows + rows_at_once - 1) / rows_at_once} * token_tiles; }
};

// The sums of one warp lie in shared memory as [token][position], rows this many floats apart: threads that store a
// fragment miss each other's banks.
constexpr int kSumsPitch = kTileRows + 4;

// Shared memory of a block: what the warps decode in, or later their sums, and behind it their barriers.
template <class Decoder, int kTokens>
struct TiledShared {
  static constexpr int kDecoders = kTiledWarps * Decoder::kSharedBytes;
  static constexpr int kSums = kTiledWarps * kTokens * kSumsPitch * 4;
  static constexpr int kBarriers = kDecoders > kSums ? kDecoders : kSums;
  static constexpr int kBytes = kBarriers + kTiledWarps * Decoder::kBarrierBytes;
};

// Of 8 tokens, the 16 columns of a tile that a lane needs: fragment s of the second operand is words 2s and 2s + 1.
struct XFragments {
  uint32_t words[2 * kFragments];

  // Vectors of columns that do not exist count as 0.
  template <class T>
  __device__ __forceinline__ void load(const T* at, bool first, bool second) {
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    const uint4 v = first ? load_now(at) : zeros, w = second ? load_now(at + 8) : zeros;
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    words[4] = w.x, words[5] = w.y, words[6] = w.z, words[7] = w.w;
  }
};

template <class T>
__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&w)[kFragments][4], const XFragments& x) {
#pragma unroll
  for (int s = 0; s < kFragments; ++s) mma(sums, w[s], x.words + 2 * s, T{});
}

// One warp's pieces.
template <class T, class Decoder, int kTokens>
__device__ __forceinline__ void multiply_tiles(const TiledSpmm& a, Decoder& decoder, const Piece& piece, int token,
                                               float (&sums)[kStrips][kTokens / 8][4]) {
  constexpr int kTokenTiles = kTokens / 8;
  const int lane = threadIdx.x % kLanes, own_token = token + lane / 4, own_column = 16 * (lane % 4);
  const T* at = static_cast<const T*>(a.x) + own_token * a.ldx + piece.first * kTileColumns + own_column;
  const int64_t step = 8 * a.ldx;
  for (int tile = piece.first; tile < piece.last; ++tile, at += kTileColumns) {
    const int columns = a.w.k - tile * kTileColumns - own_column;
    const T* row = at;
    XFragments x[kTokenTiles];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j, row += step) {
      const bool exists = own_token + 8 * j < a.out.m;
      x[j].load(row, exists && columns > 0, exists && columns > 8);
    }
    decoder.tile(tile, [&](int strip, const uint32_t (&w)[kFragments][4]) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) multiply<T>(sums[strip][j], w, x[j]);
    });
  }
}

template <class T, class Decoder, class Cluster, int kTokens>
__device__ __forceinline__ void spmm_tiled(const TiledSpmm& a, Cluster cluster) {
  constexpr int kTokenTiles = kTokens / 8;
  const uint32_t memory = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared()));
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  // Clusters that read the same of W follow each other.
  const int item = static_cast<int>(blockIdx.x) / Cluster::kSize;
  const int first_row = item / a.token_tiles * a.rows_at_once, token = item % a.token_tiles * kTokens;
  const int row = first_row + warp * a.rows_at_once / kTiledWarps, sharer = warp & (a.sharers - 1);

  float sums[kStrips][kTokenTiles][4] = {};
  if (row < a.w.rows) {
    for (int p = cluster.rank() * a.sharers + sharer; p < a.w.pieces; p += Cluster::kSize * a.sharers) {
      const Piece piece(a.w, row, p);
      Decoder decoder(a.w, row, piece, memory + warp * Decoder::kSharedBytes,
                      memory + TiledShared<Decoder, kTokens>::kBarriers + warp * Decoder::kBarrierBytes);
      multiply_tiles<T, Decoder, kTokens>(a, decoder, piece, token, sums);
      __syncwarp();  // before the ring is used for another piece
    }
  }

  // Sums lie where the rings were.
  float* const own = reinterpret_cast<float*>(dynamic_shared());
  __syncthreads();
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int position = 16 * strip + lane / 4 + i / 2 * 8, t = 8 * j + 2 * (lane % 4) + i % 2;
        own[(warp * kTokens + t) * kSumsPitch + position] = sums[strip][j][i];
      }
    }
  }

  // Each half of the threads takes every other row of tiles, or every other token if there is one row. What they need
  // beside the sums is loaded before they wait.
  constexpr int kHalf = kTiledWarps * kLanes / 2, kMostRows = kTiledWarps / 2, kOwnTokens = kTokens / Cluster::kSize;
  static_assert(kHalf == kTileRows, "a thread for each row of W");
  const int half = threadIdx.x / kHalf, halves_of_rows = a.rows_at_once == 1 ? 1 : 2;
  const int own_row = half % halves_of_rows, own_token = half / halves_of_rows;
  const float* at[kMostRows];
  int n[kMostRows];
  float bias[kMostRows];
#pragma unroll
  for (int i = 0; i < kMostRows; ++i) {
    const int r = own_row + i * halves_of_rows;
    n[i] = (first_row + r) * kTileRows + static_cast<int>(threadIdx.x) % kHalf;
    if (r >= a.rows_at_once || n[i] >= a.w.n) {
      at[i] = nullptr;
      continue;
    }
    at[i] = own + r * a.sharers * kTokens * kSumsPitch + a.w.order[n[i]];
    bias[i] = bias_at<T>(a.out.bias, a.out.wide_bias, n[i]);
  }
  cluster.sync();
#pragma unroll
  for (int i = 0; i < kMostRows; ++i) {
    if (at[i] == nullptr) continue;
    for (int t = cluster.rank() * kOwnTokens + own_token; t < (cluster.rank() + 1) * kOwnTokens;
         t += 2 / halves_of_rows) {
      if (token + t >= a.out.m) break;
      float sum = bias[i];
      for (int w = 0; w < a.sharers; ++w) {
        float parts[Cluster::kSize];
        cluster.load(at[i] + (w * kTokens + t) * kSumsPitch, parts);
#pragma unroll
        for (int block = 0; block < Cluster::kSize; ++block) sum += parts[block];
      }
      narrow(activate(sum, a.out.activation), static_cast<T*>(a.out.y) + (token + t) * a.out.ldy + n[i]);
    }
  }
  cluster.finish();
}

}  // namespace gpu
}  // namespace sparseinfer
