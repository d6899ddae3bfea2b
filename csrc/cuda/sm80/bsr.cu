// Product of bsr on tensor cores by mma.sync: a block of threads computes one block row of W times 128 tokens.
//
// Stages of 64 columns are loaded by cp.async, kStages - 1 of them ahead of the one being multiplied. Slabs are stored
// in the layout of shared memory, so W is copied unchanged; x is swizzled while it is copied. Blocks of threads start
// with the longest block row. Sums are added in the order of the columns.
#include "cuda/slabs.cuh"
#include "cuda/sm80/fragments.h"

namespace sparseinfer {
namespace gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 128;
constexpr int kStages = 3;  // with blocks of 128 they are 96 KB, what devices of 8.6 and 8.9 have
constexpr int kXBytes = kTokens * kMaxSlabColumns * 2;

struct Bsr {
  Slabs w;
  const void* x;
  int64_t ldx;
  Output out;
  int k, token_tiles;
};

// Queues one stage, of slabs [slab, slab + kSlabs). Behind its last column and row x counts as zero.
template <class T, int kBlock>
__device__ __forceinline__ void load_stage(const Bsr& a, uint32_t stage, uint32_t slab, int token) {
  using G = Geometry<kBlock>;
  constexpr int kChunks = kMaxSlabColumns / 8;  // of 16 bytes, per token
  const int chunk = threadIdx.x % kChunks, sub = chunk / (G::kColumns / 8), inside = chunk % (G::kColumns / 8);
  const int column = __ldg(a.w.columns + slab + sub) * G::kColumns + inside * 8;
#pragma unroll
  for (int i = 0; i < kTokens * kChunks / kThreads; ++i) {
    const int t = (i * kThreads + static_cast<int>(threadIdx.x)) / kChunks;
    const bool exists = column < a.k && token + t < a.out.m;
    const T* from = static_cast<const T*>(a.x) + (exists ? (token + t) * a.ldx + column : 0);
    const uint32_t to = swizzle(static_cast<uint32_t>(t * G::kRowBytes + inside * 16), G::kRowBytes);
    copy_async(stage + sub * (kTokens * G::kRowBytes) + to, from, exists);
  }
  const char* values = a.w.values + static_cast<int64_t>(slab) * G::kSlabBytes;
#pragma unroll
  for (int offset = 16 * static_cast<int>(threadIdx.x); offset < G::kStageBytes; offset += 16 * kThreads) {
    copy_async(stage + kXBytes + offset, values + offset, true);
  }
}

template <class T, int kBlock>
__global__ void __launch_bounds__(kThreads) spmm_bsr_mma(const __grid_constant__ Bsr a) {
  using G = Geometry<kBlock>;
  constexpr int kWarpColumns = kBlock >= 64 ? 2 : 1, kWarpRows = kThreads / 32 / kWarpColumns;
  constexpr int kTokenTiles = kTokens / kWarpRows / 16, kTiles = kBlock / kWarpColumns / 8;
  constexpr int kStage = kXBytes + G::kStageBytes;
  const uint32_t stages = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared()));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_token = warp / kWarpColumns * (16 * kTokenTiles), warp_row = warp % kWarpColumns * (8 * kTiles);
  const int position = static_cast<int>(blockIdx.x) / a.token_tiles;
  const int token = static_cast<int>(blockIdx.x) % a.token_tiles * kTokens;

  float sums[kTokenTiles][4 * kTiles] = {};
  const uint32_t begin = __ldg(a.w.starts + position), end = __ldg(a.w.starts + position + 1);
  const int count = static_cast<int>(end - begin) / G::kSlabs;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < count) load_stage<T, kBlock>(a, stages + s * kStage, begin + s * G::kSlabs, token);
    copy_commit();
  }
  for (int s = 0; s < count; ++s) {
    copy_wait<kStages - 2>();
    __syncthreads();  // stage s is there for all, and all are done with the stage that is loaded next
    const int ahead = s + kStages - 1;
    if (ahead < count) {
      load_stage<T, kBlock>(a, stages + ahead % kStages * kStage, begin + ahead * G::kSlabs, token);
    }
    copy_commit();
    const uint32_t x_stage = stages + s % kStages * kStage, w_stage = x_stage + kXBytes;
#pragma unroll
    for (int step = 0; step < G::kSteps; ++step) {
      const int sub = step * 16 / G::kColumns, column = step * 16 % G::kColumns;
      uint32_t x[kTokenTiles][4], w[kTiles / 2][4];
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        load_matrices(
            x_stage + sub * (kTokens * G::kRowBytes) + token_fragment(lane, warp_token + 16 * i, column, G::kRowBytes),
            x[i]);
      }
#pragma unroll
      for (int j = 0; j < kTiles / 2; ++j) {
        load_matrices(w_stage + sub * G::kSlabBytes + weight_fragment(lane, warp_row + 16 * j, column, G::kRowBytes),
                      w[j]);
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) mma(sums[i] + 4 * j, x[i], w[j / 2] + j % 2 * 2, T{});
      }
    }
  }
  copy_wait<0>();
  const int column = __ldg(a.w.order + position) * kBlock + warp_row;
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) store_sums<T, kTiles>(a.out, sums[i], token + warp_token + 16 * i, column);
}

}  // namespace

template <class T, int kBlock>
cudaError_t bsr_mma(const Args& args) {
  constexpr auto* kKernel = spmm_bsr_mma<T, kBlock>;
  constexpr int kBytes = kStages * (kXBytes + Geometry<kBlock>::kStageBytes);
  const int64_t token_tiles = (args.m + kTokens - 1) / kTokens;
  const Bsr bsr{
      Slabs::of(args), args.x, args.ldx, Output::of(args), static_cast<int>(args.w.k), static_cast<int>(token_tiles)};
  if (const cudaError_t error = allow_shared<kKernel>(args, kBytes)) return error;
  const auto blocks = static_cast<unsigned>(bsr.w.block_rows * token_tiles);
  return start(kKernel, blocks, kThreads, kBytes, args.stream, bsr);
}

#define SI_BSR(block)                                     \
  template cudaError_t bsr_mma<BF16, block>(const Args&); \
  template cudaError_t bsr_mma<F16, block>(const Args&);
SI_BSR(16)
SI_BSR(32)
SI_BSR(64)
SI_BSR(128)
#undef SI_BSR

}  // namespace gpu
}  // namespace sparseinfer
