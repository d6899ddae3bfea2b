// A warp's ring buffer, filled by cp.async; every chunk is one group of copies.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/ring.h"

namespace sparseinfer {
namespace gpu {

template <int kChunks>
class CopyRing {
 public:
  static constexpr int kBytes = kChunks * kChunkBytes;
  static constexpr int kBarrierBytes = 0;

  // `ring`: shared memory that nothing is using any more. All lanes of a warp call this and everything else.
  __device__ __forceinline__ CopyRing(uint32_t ring, uint32_t, const char* stream, uint32_t bytes)
      : stream_(stream), ring_(ring), bytes_(bytes) {
    release(0);
  }

  // Waits until bytes [0, end) of the stream have come.
  __device__ __forceinline__ void reach(uint32_t end) {
    const uint32_t wanted = chunk_count(end);
    if (landed_ >= wanted) return;
    wait_for_all_but<kChunks - 1>(issued_ - wanted);
    __syncwarp();
    landed_ = wanted;
  }

  // Bytes [0, begin) are not needed any more: what comes next is copied over them.
  __device__ __forceinline__ void release(uint32_t begin) {
    const uint32_t limit = min(chunk_count(bytes_), begin / kChunkBytes + kChunks);
    if (issued_ >= limit) return;
    __syncwarp();
#pragma unroll 1
    for (; issued_ < limit; ++issued_) {
      const uint32_t size = chunk_bytes(issued_, bytes_), to = ring_ + issued_ % kChunks * kChunkBytes;
      const char* from = stream_ + issued_ * kChunkBytes;
#pragma unroll
      for (int i = 0; i < kChunkBytes / (16 * kLanes); ++i) {
        const uint32_t byte = (i * kLanes + threadIdx.x % kLanes) * 16;
        if (byte < size) copy_async(to + byte, from + byte, true);
      }
      copy_commit();
    }
  }

 private:
  // Groups of copies, the newest `newer` of which may still be under way.
  template <int kNewer>
  static __device__ __forceinline__ void wait_for_all_but(uint32_t newer) {
    if constexpr (kNewer > 0) {
      if (newer < kNewer) return wait_for_all_but<kNewer - 1>(newer);
    }
    copy_wait<kNewer>();
  }

  const char* stream_;
  uint32_t ring_, bytes_, issued_ = 0, landed_ = 0;
};

}  // namespace gpu
}  // namespace sparseinfer
