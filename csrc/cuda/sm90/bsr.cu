// Product of bsr on Hopper, with TMA and wgmma, as a persistent kernel. A block of threads has one warpgroup that
// copies and two that multiply.
//
// An item is one block row of W times kTokens tokens, half of them for each multiplying warpgroup; items are sorted by
// work and distributed round-robin, so that every multiprocessor gets about the same. Stages of 64 columns are loaded
// into a ring buffer that fills shared memory: x by a tensor map, which swizzles and supplies zeros outside x, W by a
// bulk copy, because slabs are stored swizzled. While an item is written, the stages of the next one are already being
// loaded.
//
// Registers: kTokens / 128 times kBlock / 2 sums per thread, at most 128. Sums are added in the order of the columns.
#include <type_traits>

#include "cuda/slabs.cuh"
#include "cuda/sm90/async.cuh"
#include "cuda/sm90/descriptor.h"

namespace sparseinfer {
namespace gpu {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kMultipliers = 2;
constexpr int kThreads = (1 + kMultipliers) * kGroupThreads;
constexpr int kSharedBytes = 227 * 1024;
constexpr int kSlack = 2048;  // to align the stages, and the barriers behind them

struct Bsr {
  Slabs w;
  Output out;
  int items, token_tiles;
};

template <int kBlock, int kTokens>
struct Ring {
  using G = Geometry<kBlock>;
  static constexpr int kXSlabBytes = kTokens * G::kRowBytes;
  static constexpr int kXBytes = kTokens * kMaxSlabColumns * 2;
  static constexpr int kBytes = kXBytes + G::kStageBytes;  // of a stage, a multiple of 1024
  static constexpr int kStages = (kSharedBytes - kSlack) / kBytes < 8 ? (kSharedBytes - kSlack) / kBytes : 8;
  static_assert(kBytes % 1024 == 0 && kStages >= 2, "swizzles want aligned stages");

  uint32_t base;  // shared-memory address, a multiple of 1024
  int stage = 0;
  uint32_t parity = 0;

  __device__ explicit Ring(const void* shared)
      : base((static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + 1023) / 1024 * 1024) {}
  __device__ uint32_t x() const { return base + stage * kBytes; }
  __device__ uint32_t w() const { return x() + kXBytes; }
  __device__ uint32_t full(int s) const { return base + kStages * kBytes + 16 * s; }
  __device__ uint32_t empty(int s) const { return full(s) + 8; }
  __device__ uint32_t full() const { return full(stage); }
  __device__ uint32_t empty() const { return empty(stage); }
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

struct Item {
  int position, token;
  uint32_t begin, end;  // slabs
};

// False where the last round has no item for this block of threads.
template <int kTokens>
__device__ __forceinline__ bool next_item(const Bsr& a, int round, Item& item) {
  const int i = static_cast<int>(dealt_item(round, blockIdx.x, gridDim.x));
  if (i >= a.items) return false;
  item.position = i / a.token_tiles;
  item.token = i % a.token_tiles * kTokens;
  item.begin = __ldg(a.w.starts + item.position);
  item.end = __ldg(a.w.starts + item.position + 1);
  return true;
}

// One thread.
template <int kBlock, int kTokens>
__device__ __forceinline__ void copy_items(const Bsr& a, const CUtensorMap& x_map, Ring<kBlock, kTokens> ring,
                                           int rounds) {
  using G = Geometry<kBlock>;
  using R = Ring<kBlock, kTokens>;
  prefetch_map(x_map);
  for (int round = 0; round < rounds; ++round) {
    Item item;
    if (!next_item<kTokens>(a, round, item)) continue;
    for (uint32_t slab = item.begin; slab < item.end; slab += G::kSlabs, ring.advance()) {
      barrier_wait(ring.empty(), ring.parity ^ 1);
      barrier_arrive_expecting(ring.full(), R::kBytes);
      copy_bulk(ring.w(), a.w.values + static_cast<int64_t>(slab) * G::kSlabBytes, G::kStageBytes, ring.full());
#pragma unroll
      for (int sub = 0; sub < G::kSlabs; ++sub) {
        const int column = __ldg(a.w.columns + slab + sub) * G::kColumns;
        copy_box(ring.x() + sub * R::kXSlabBytes, x_map, column, item.token, ring.full());
      }
    }
  }
}

// A warpgroup; `half` is its share of the tokens.
template <class T, int kBlock, int kTokens>
__device__ __forceinline__ void multiply_items(const Bsr& a, Ring<kBlock, kTokens> ring, int rounds, int half) {
  using G = Geometry<kBlock>;
  using R = Ring<kBlock, kTokens>;
  constexpr int kOwnTokens = kTokens / kMultipliers, kTokenTiles = kOwnTokens / 64;
  const int warp = threadIdx.x % kGroupThreads / 32;
  const bool speaks = threadIdx.x % 32 == 0;
  for (int round = 0; round < rounds; ++round) {
    Item item;
    if (!next_item<kTokens>(a, round, item)) continue;
    float sums[kTokenTiles][kBlock / 2] = {};
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) wgmma_hold(sums[i]);
    uint32_t previous = 0;  // barrier of the stage whose products may still run
    for (uint32_t slab = item.begin; slab < item.end; slab += G::kSlabs, ring.advance()) {
      barrier_wait(ring.full(), ring.parity);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < G::kSteps; ++step) {
        const int sub = step * 16 / G::kColumns, bytes = step * 16 % G::kColumns * 2;
        const uint64_t w = operand_descriptor(ring.w() + sub * G::kSlabBytes + bytes, G::kRowBytes);
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
          const uint32_t first = (half * kOwnTokens + 64 * i) * G::kRowBytes;
          const uint64_t x = operand_descriptor(ring.x() + sub * R::kXSlabBytes + first + bytes, G::kRowBytes);
          wgmma(sums[i], x, w, T{});
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (previous != 0 && speaks) barrier_arrive(previous);
      previous = ring.empty();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) wgmma_hold(sums[i]);
    if (previous != 0 && speaks) barrier_arrive(previous);
    const int column = __ldg(a.w.order + item.position) * kBlock;
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      store_sums<T, kBlock / 8>(a.out, sums[i], item.token + half * kOwnTokens + 64 * i + 16 * warp, column);
    }
  }
}

template <class T, int kBlock, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    spmm_bsr_wgmma(const __grid_constant__ Bsr a, const __grid_constant__ CUtensorMap x_map) {
  using R = Ring<kBlock, kTokens>;
  const R ring(dynamic_shared());
  if (threadIdx.x == 0) {
    for (int s = 0; s < R::kStages; ++s) {
      barrier_init(ring.full(s), 1);
      barrier_init(ring.empty(s), kMultipliers * kGroupThreads / 32);
    }
    barrier_init_fence();
  }
  __syncthreads();
  const int rounds = (a.items + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  if (threadIdx.x / kGroupThreads == 0) {
    give_registers<40>();
    if (threadIdx.x == 0 && a.w.slabs > 0) copy_items<kBlock, kTokens>(a, x_map, ring, rounds);
  } else {
    take_registers<232>();
    multiply_items<T, kBlock, kTokens>(a, ring, rounds, static_cast<int>(threadIdx.x) / kGroupThreads - 1);
  }
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// From the driver that is loaded, so that this module needs none to be imported.
EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(entry)
                                                                        : nullptr;
  }();
  return function;
}

// Boxes of kTokens rows and one slab's columns of x [m, k].
template <class T, int kBlock, int kTokens>
cudaError_t map_of_x(const Args& args, CUtensorMap* map) {
  using G = Geometry<kBlock>;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(args.w.k), static_cast<cuuint64_t>(args.m)};
  const cuuint64_t pitch[] = {static_cast<cuuint64_t>(args.ldx) * sizeof(T)};
  const cuuint32_t box[] = {G::kColumns, kTokens}, steps[] = {1, 1};
  constexpr auto kType = std::is_same_v<T, BF16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  constexpr auto kSwizzle = G::kRowBytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                            : G::kRowBytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                 : CU_TENSOR_MAP_SWIZZLE_32B;
  const EncodeTiled encode = encode_tiled();
  if (encode == nullptr) return cudaErrorCallRequiresNewerDriver;
  const CUresult result =
      encode(map, kType, 2, const_cast<void*>(args.x), sizes, pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             kSwizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class T, int kBlock, int kTokens>
cudaError_t launch(const Args& args) {
  constexpr auto* kKernel = spmm_bsr_wgmma<T, kBlock, kTokens>;
  constexpr int kBytes = Ring<kBlock, kTokens>::kStages * Ring<kBlock, kTokens>::kBytes + kSlack;
  const int64_t token_tiles = (args.m + kTokens - 1) / kTokens;
  const Bsr bsr{Slabs::of(args), Output::of(args), static_cast<int>(args.w.n / kBlock * token_tiles),
                static_cast<int>(token_tiles)};
  CUtensorMap x_map{};  // without slabs nobody reads x, which may have no columns to map
  if (bsr.w.slabs > 0) {
    if (const cudaError_t error = map_of_x<T, kBlock, kTokens>(args, &x_map)) return error;
  }
  if (const cudaError_t error = allow_shared<kKernel>(args, kBytes)) return error;
  const int blocks = bsr.items < args.multiprocessors ? bsr.items : args.multiprocessors;
  return start(kKernel, static_cast<unsigned>(blocks), kThreads, kBytes, args.stream, bsr, x_map);
}

}  // namespace

// Many tokens at once read W less often; fewer keep all multiprocessors busy.
template <class T, int kBlock>
cudaError_t bsr_wgmma(const Args& args) {
  const int64_t wide_items = args.w.n / kBlock * ((args.m + 255) / 256);
  return wide_items >= args.multiprocessors ? launch<T, kBlock, 256>(args) : launch<T, kBlock, 128>(args);
}

#define SI_BSR(block)                                       \
  template cudaError_t bsr_wgmma<BF16, block>(const Args&); \
  template cudaError_t bsr_wgmma<F16, block>(const Args&);
SI_BSR(16)
SI_BSR(32)
SI_BSR(64)
SI_BSR(128)
#undef SI_BSR

}  // namespace gpu
}  // namespace sparseinfer
