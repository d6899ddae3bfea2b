// Products of the tiled packings on Hopper: with bulk copies, the pieces of a row spread over the blocks of a cluster.
// See tiled_spmm.cuh.
//
// Products use mma.sync: at these numbers of tokens it never limits the speed, and wgmma would need x in shared memory
// and four warps in lockstep.
#include "cuda/sm90/cluster.cuh"
#include "cuda/sm90/ring.cuh"
#include "cuda/tiled_spmm.cuh"

namespace sparseinfer {
namespace gpu {
namespace {

template <Kind kKind>
using Decoder = typename DecoderOf<BulkRing, kKind>::Type;

// The most blocks that every device of 9.0 takes. A block has one piece of 4 rows of tiles, or two of 2.
struct Cluster : BlockCluster<8> {
  static constexpr int sharers(int pieces) { return pieces / kSize; }
};

// Of a multiprocessor: as many as shared memory holds, or registers.
template <int kTokens>
constexpr int kBlocks = kTokens > 32 ? 2 : 3;

template <class T, Kind kKind, int kTokens>
__global__ void __launch_bounds__(kTiledWarps* kLanes, kBlocks<kTokens>)
    spmm_tiled_bulk(const __grid_constant__ TiledSpmm a) {
  spmm_tiled<T, Decoder<kKind>, Cluster, kTokens>(a, Cluster());
}

}  // namespace

template <class T, Kind kKind, int kTokens>
cudaError_t tiled_bulk(const Args& args) {
  constexpr auto* kKernel = spmm_tiled_bulk<T, kKind, kTokens>;
  constexpr int kBytes = TiledShared<Decoder<kKind>, kTokens>::kBytes;
  const TiledSpmm spmm = TiledSpmm::of<Cluster, kTokens>(args);
  if (const cudaError_t error = allow_shared<kKernel>(args, kBytes)) return error;
  const int64_t blocks = spmm.clusters() * Cluster::kSize;
  return start_clusters(kKernel, static_cast<unsigned>(blocks), Cluster::kSize, kTiledWarps * kLanes, kBytes,
                        args.stream, spmm);
}

#define SI_TILED(T, kind)                                          \
  template cudaError_t tiled_bulk<T, Kind::kind, 8>(const Args&);  \
  template cudaError_t tiled_bulk<T, Kind::kind, 16>(const Args&); \
  template cudaError_t tiled_bulk<T, Kind::kind, 32>(const Args&); \
  template cudaError_t tiled_bulk<T, Kind::kind, 64>(const Args&);
SI_TILED(BF16, kBitmap)
SI_TILED(BF16, kDelta4)
SI_TILED(BF16, kDelta8)
SI_TILED(F16, kBitmap)
SI_TILED(F16, kDelta4)
SI_TILED(F16, kDelta8)
#undef SI_TILED

}  // namespace gpu
}  // namespace sparseinfer
