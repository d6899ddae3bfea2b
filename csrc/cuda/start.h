// How launchers start their kernels.
#pragma once

#include <atomic>

#include "cuda/kernel.h"

namespace sparseinfer {
namespace gpu {

// Queues a kernel.
template <class... Parameters>
cudaError_t start(void (*kernel)(Parameters...), unsigned blocks, int threads, size_t shared_bytes, cudaStream_t stream,
                  Parameters... parameters) {
  void* addresses[] = {&parameters...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads), addresses, shared_bytes,
                          stream);
}

// Queues a kernel whose blocks form clusters of `size`, consecutive ones; `size` divides `blocks`.
template <class... Parameters>
cudaError_t start_clusters(void (*kernel)(Parameters...), unsigned blocks, unsigned size, int threads,
                           size_t shared_bytes, cudaStream_t stream, Parameters... parameters) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {size, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  void* addresses[] = {&parameters...};
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), addresses);
}

// Lets a kernel have more than 48 KB of shared memory, and as many blocks of it as a multiprocessor holds; once per
// device.
template <auto* kKernel>
cudaError_t allow_shared(const Args& args, int bytes) {
  static std::atomic<bool> done[64];  // two threads may both do it
  if (args.device < 64 && done[args.device]) return cudaSuccess;
  const auto* kernel = reinterpret_cast<const void*>(kKernel);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) {
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  if (error == cudaSuccess && args.device < 64) done[args.device] = true;
  return error;
}

}  // namespace gpu
}  // namespace sparseinfer
