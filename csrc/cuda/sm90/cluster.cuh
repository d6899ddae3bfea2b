// Thread block clusters, whose blocks can access each other's shared memory.
#pragma once

#include "cuda/common.cuh"

namespace sparseinfer {
namespace gpu {

template <int kBlocks>
struct BlockCluster {
  static constexpr int kSize = kBlocks;

  __device__ __forceinline__ int rank() const {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
  }
  // Of all threads of all blocks, and what they wrote to shared memory.
  __device__ __forceinline__ void sync() const {
    asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
  }
  // No block ends while another may read its shared memory.
  __device__ __forceinline__ void finish() const {
    asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait;" ::: "memory");
  }

  // What `own`, in shared memory, is in each block.
  __device__ __forceinline__ void load(const float* own, float (&values)[kBlocks]) const {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(own));
#pragma unroll
    for (int rank = 0; rank < kBlocks; ++rank) {
      asm volatile("{ .reg .u32 a; mapa.shared::cluster.u32 a, %1, %2; ld.shared::cluster.f32 %0, [a]; }"
                   : "=f"(values[rank])
                   : "r"(address), "r"(rank)
                   : "memory");
    }
  }
};

}  // namespace gpu
}  // namespace sparseinfer
