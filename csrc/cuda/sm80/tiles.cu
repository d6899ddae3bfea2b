// Products and decompression of the tiled packings for sm80, by mma.sync and cp.async. See tiled_spmm.cuh.
#include "cuda/sm80/ring.cuh"
#include "cuda/tiled_spmm.cuh"

namespace sparseinfer {
namespace gpu {
namespace {

template <Kind kKind>
using Decoder = typename DecoderOf<CopyRing, kKind>::Type;

// Without clusters a block has all pieces of a row of tiles.
struct SingleBlock {
  static constexpr int kSize = 1;
  static constexpr int sharers(int) { return kTiledWarps; }
  __device__ __forceinline__ int rank() const { return 0; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void finish() const {}
  __device__ __forceinline__ void load(const float* own, float (&values)[kSize]) const { values[0] = *own; }
};

template <class T, Kind kKind, int kTokens>
__global__ void __launch_bounds__(kTiledWarps* kLanes) spmm_tiled_mma(const __grid_constant__ TiledSpmm a) {
  spmm_tiled<T, Decoder<kKind>, SingleBlock, kTokens>(a, SingleBlock());
}

// y [n, k], each warp its piece: a lane has 16 columns of a row from each strip.
template <class T, Kind kKind>
__global__ void __launch_bounds__(kTiledWarps* kLanes)
    decompress_tiles(const __grid_constant__ Tiles w, T* y, int64_t ldy) {
  const uint32_t memory = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared()));
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int blocks = w.pieces / kTiledWarps, row = static_cast<int>(blockIdx.x) / blocks;
  const Piece piece(w, row, static_cast<int>(blockIdx.x) % blocks * kTiledWarps + warp);
  const int first_row = row * kTileRows, rows = min(kTileRows, w.n - first_row);
  // Which row lies at a position: the way back from `order`.
  auto* const row_at = reinterpret_cast<uint8_t*>(dynamic_shared() + kTiledWarps * Decoder<kKind>::kSharedBytes);
  if (threadIdx.x < kTileRows) row_at[threadIdx.x] = kTileRows;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < rows)
    row_at[w.order[first_row + threadIdx.x]] = static_cast<uint8_t>(threadIdx.x);
  __syncthreads();

  Decoder<kKind> decoder(w, row, piece, memory + warp * Decoder<kKind>::kSharedBytes, 0);
  for (int tile = piece.first; tile < piece.last; ++tile) {
    const int column = tile * kTileColumns + 16 * (lane % 4);
    decoder.tile(tile, [&](int strip, const uint32_t (&f)[kFragments][4]) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const int r = row_at[16 * strip + lane / 4 + 8 * upper];
        if (r >= rows) continue;
        T* to = y + (first_row + r) * ldy + column;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (column + 8 * i >= w.k) continue;
          *reinterpret_cast<uint4*>(to + 8 * i) =
              make_uint4(f[2 * i][upper], f[2 * i][upper + 2], f[2 * i + 1][upper], f[2 * i + 1][upper + 2]);
        }
      }
    });
  }
}

}  // namespace

template <class T, Kind kKind, int kTokens>
cudaError_t tiled_mma(const Args& args) {
  constexpr auto* kKernel = spmm_tiled_mma<T, kKind, kTokens>;
  constexpr int kBytes = TiledShared<Decoder<kKind>, kTokens>::kBytes;
  const TiledSpmm spmm = TiledSpmm::of<SingleBlock, kTokens>(args);
  if (const cudaError_t error = allow_shared<kKernel>(args, kBytes)) return error;
  const int64_t blocks = spmm.clusters();
  return start(kKernel, static_cast<unsigned>(blocks), kTiledWarps * kLanes, kBytes, args.stream, spmm);
}

template <class T, Kind kKind>
cudaError_t tiled_decompress(const Args& args) {
  constexpr auto* kKernel = decompress_tiles<T, kKind>;
  constexpr int kBytes = kTiledWarps * Decoder<kKind>::kSharedBytes + kTileRows;
  const Tiles tiles = Tiles::of(args);
  if (const cudaError_t error = allow_shared<kKernel>(args, kBytes)) return error;
  const int64_t blocks = int64_t{tiles.rows} * (tiles.pieces / kTiledWarps);
  return start(kKernel, static_cast<unsigned>(blocks), kTiledWarps * kLanes, kBytes, args.stream, tiles,
               static_cast<T*>(args.y), args.ldy);
}

#define SI_TILED(T, kind)                                         \
  template cudaError_t tiled_mma<T, Kind::kind, 8>(const Args&);  \
  template cudaError_t tiled_mma<T, Kind::kind, 16>(const Args&); \
  template cudaError_t tiled_mma<T, Kind::kind, 32>(const Args&); \
  template cudaError_t tiled_mma<T, Kind::kind, 64>(const Args&); \
  template cudaError_t tiled_decompress<T, Kind::kind>(const Args&);
SI_TILED(BF16, kBitmap)
SI_TILED(BF16, kDelta4)
SI_TILED(BF16, kDelta8)
SI_TILED(F16, kBitmap)
SI_TILED(F16, kDelta4)
SI_TILED(F16, kDelta8)
#undef SI_TILED

}  // namespace gpu
}  // namespace sparseinfer
