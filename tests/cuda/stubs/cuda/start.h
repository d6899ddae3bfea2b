// Instead of csrc/cuda/start.h: kernels are started on the emulator.
#pragma once

#include "cuda/kernel.h"
#include "emulator.h"

namespace sparseinfer {
namespace gpu {

using emulator::start;
using emulator::start_clusters;

template <auto* kKernel>
cudaError_t allow_shared(const Args&, int bytes) {
  return cudaFuncSetAttribute(nullptr, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace gpu
}  // namespace sparseinfer
