// A warp's ring buffer, filled by bulk copies, one per chunk, each with a barrier.
#pragma once

#include "cuda/ring.h"
#include "cuda/sm90/async.cuh"

namespace sparseinfer {
namespace gpu {

template <int kChunks>
class BulkRing {
 public:
  static constexpr int kBytes = kChunks * kChunkBytes;
  static constexpr int kBarrierBytes = 8 * kChunks;

  // `ring` and `barriers`: shared memory that nothing has used before. All lanes of a warp call this and everything
  // else.
  __device__ __forceinline__ BulkRing(uint32_t ring, uint32_t barriers, const char* stream, uint32_t bytes)
      : stream_(stream), ring_(ring), barriers_(barriers), bytes_(bytes) {
    if (elected()) {
#pragma unroll 1
      for (int i = 0; i < kChunks; ++i) barrier_init(barrier(i), 1);
      barrier_init_fence();
    }
    release(0);
  }

  // Waits until bytes [0, end) of the stream have come.
  __device__ __forceinline__ void reach(uint32_t end) {
#pragma unroll 1
    for (; landed_ * kChunkBytes < end; ++landed_) barrier_wait(barrier(landed_), landed_ / kChunks & 1);
  }

  // Bytes [0, begin) are not needed any more: what comes next is copied over them.
  __device__ __forceinline__ void release(uint32_t begin) {
    const uint32_t limit = min(chunk_count(bytes_), begin / kChunkBytes + kChunks);
    if (issued_ >= limit) return;
    __syncwarp();
    if (elected()) {
#pragma unroll 1
      for (uint32_t chunk = issued_; chunk < limit; ++chunk) {
        const int size = static_cast<int>(chunk_bytes(chunk, bytes_));
        barrier_arrive_expecting(barrier(chunk), size);
        copy_bulk(ring_ + chunk % kChunks * kChunkBytes, stream_ + chunk * kChunkBytes, size, barrier(chunk));
      }
    }
    issued_ = limit;
  }

 private:
  __device__ __forceinline__ uint32_t barrier(uint32_t chunk) const { return barriers_ + 8 * (chunk % kChunks); }

  const char* stream_;
  uint32_t ring_, barriers_, bytes_, issued_ = 0, landed_ = 0;
};

}  // namespace gpu
}  // namespace sparseinfer
