// Common to the block-sparse kernels of sm80 and sm90: reading a bsr packing, and writing the sums of tensor cores.
//
// Tokens are the rows of a product, x its first operand and a block of W its second: for every block size the sums then
// have the layout of y, and the rows of W are the n dimension of an instruction, which needs only 16.
#pragma once

#include "cuda/common.cuh"
#include "cuda/kernel.h"
#include "cuda/positions.h"

namespace sparseinfer {
namespace gpu {

// A stage is 64 columns of x and of W: 1, 2 or 4 slabs.
template <int kBlock>
struct Geometry {
  static constexpr int kColumns = slab_columns(kBlock);
  static constexpr int kRowBytes = kColumns * 2;
  static constexpr int kSlabBytes = kBlock * kRowBytes;
  static constexpr int kSlabs = slabs_per_stage(kBlock);   // of a stage
  static constexpr int kStageBytes = kSlabs * kSlabBytes;  // of W
  static constexpr int kSteps = kMaxSlabColumns / 16;      // instructions along k
};

struct Slabs {
  const int32_t* order;    // [block rows]
  const uint32_t* starts;  // [block rows + 1]
  const int32_t* columns;  // [slabs]
  const char* values;      // [slabs][kSlabBytes]
  int block_rows, slabs;

  static Slabs of(const Args& a) {
    return {section<int32_t>(a.blob, a.w.order),   section<uint32_t>(a.blob, a.w.starts),
            section<int32_t>(a.blob, a.w.columns), section<char>(a.blob, a.w.values),
            static_cast<int>(a.w.n / a.w.block),   static_cast<int>(a.w.units)};
  }
};

// Of 4 threads with 4 words each: word i of thread q becomes word q of thread i.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (threadIdx.x & step) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Constant subscripts keep the words in registers.
      constexpr int kUpper = 3;
      uint32_t& low = w[quad_sent(kUpper, step, i)];
      uint32_t& high = w[quad_sent(0, step, i)];
      const uint32_t got = __shfl_xor_sync(~0u, upper ? low : high, step);
      (upper ? low : high) = got;
    }
  }
}

// `store_sums` with an activation that the compiler knows.
template <class T, int kTiles, Activation kActivation>
__device__ __forceinline__ void store_activated(const Output& out, const float* sums, int token, int column) {
  static_assert(kTiles % 2 == 0, "tiles come in pairs");
  const int lane = threadIdx.x % 32, q = lane % 4;
  const int t = token + stored_token(lane);
#pragma unroll
  for (int tile = 0; tile < kTiles; tile += 2) {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int c = column + 8 * (tile + j) + 2 * q;
      const float low_bias = bias_at<T>(out.bias, out.wide_bias, c);
      const float high_bias = bias_at<T>(out.bias, out.wide_bias, c + 1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* pair = sums + 4 * (tile + j) + 2 * half;
        const float low = activate(pair[0] + low_bias, kActivation);
        words[2 * half + j] = narrow_pair(low, activate(pair[1] + high_bias, kActivation), T{});
      }
    }
    transpose_quad(words);
    if (t < out.m) {
      T* y = static_cast<T*>(out.y) + t * out.ldy + column + 8 * (tile + stored_tile(lane));
      *reinterpret_cast<uint4*>(y) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// Writes 16 tokens x 8 * kTiles columns of y: sums as mma.m16n8 and wgmma leave them, sums[4 * tile + ...] being
// (token lane / 4, column 2 * (lane % 4) + {0, 1}) and then the same for token lane / 4 + 8. Four threads exchange
// theirs, so that each writes 16 bytes and two tiles fill a whole sector of 32.
//
// One choice for all sums: a choice for each would scatter the instructions that run over hundreds of kilobytes.
template <class T, int kTiles>
__device__ __forceinline__ void store_sums(const Output& out, const float* sums, int token, int column) {
  switch (out.activation) {
#define SI_CASE(number, name)                                                   \
  case Activation::number:                                                      \
    if constexpr (Activation::number <= kLastActivation) {                      \
      store_activated<T, kTiles, Activation::number>(out, sums, token, column); \
    }                                                                           \
    return;
    SI_ACTIVATIONS(SI_CASE)
#undef SI_CASE
  }
}

}  // namespace gpu
}  // namespace sparseinfer
