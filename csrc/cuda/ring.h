// Positions of chunks in the ring buffer in shared memory through which a warp reads a stream. sm80/ring.cuh and
// sm90/ring.cuh fill it; both have the same functions.
#pragma once

#include "sparseinfer/gpu_tiles.h"

namespace sparseinfer {
namespace gpu {

constexpr int kChunkBytes = 2048;

SI_HD constexpr uint32_t chunk_count(uint32_t bytes) { return (bytes + kChunkBytes - 1) / kChunkBytes; }
SI_HD constexpr uint32_t chunk_bytes(uint32_t chunk, uint32_t bytes) {
  return bytes - chunk * kChunkBytes < kChunkBytes ? bytes - chunk * kChunkBytes : kChunkBytes;
}

// Chunks in a ring. What a decoder needs at once has to fit, with the rest of the chunk that it begins in: of a bitmap
// a tile with the lanes behind it, of delta a run of pairs. The rest is on its way from memory.
constexpr int kBitmapChunks = 8;
constexpr int kDeltaChunks = 4;
constexpr int kRunPairs = 28;
static_assert((kMostBehind + kStrips * kWordBits + 2) / 2 * kStreamRowBytes + kChunkBytes <=
              kBitmapChunks * kChunkBytes);
static_assert(kFirstsBytes + kRunPairs * pair_bytes(Kind::kDelta8) + kChunkBytes <= kDeltaChunks * kChunkBytes);

}  // namespace gpu
}  // namespace sparseinfer
