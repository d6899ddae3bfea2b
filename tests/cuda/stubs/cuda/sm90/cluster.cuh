// Instead of csrc/cuda/sm90/cluster.cuh: blocks whose shared memory is all there.
#pragma once

#include "cuda/common.cuh"

namespace sparseinfer {
namespace gpu {

template <int kBlocks>
struct BlockCluster {
  static constexpr int kSize = kBlocks;

  int rank() const { return emulator::g_current / emulator::g_threads; }
  void sync() const { emulator::meet(emulator::g_all, static_cast<int>(emulator::g_fibers.size())); }
  void finish() const { sync(); }
  void load(const float* own, float (&values)[kBlocks]) const {
    const auto offset = reinterpret_cast<const char*>(own) - emulator::g_own->shared;
    for (size_t rank = 0; rank < kBlocks; ++rank) {
      std::memcpy(&values[rank], emulator::g_cluster[rank]->shared + offset, sizeof values[rank]);
    }
  }
};

}  // namespace gpu
}  // namespace sparseinfer
