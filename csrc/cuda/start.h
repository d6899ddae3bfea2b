// How launchers start their kernels.
#pragma once

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

// Lets a kernel have more than 48 KB of shared memory, once per device.
template <auto* kKernel>
cudaError_t allow_shared(const Args& args, int bytes) {
  static bool done[64];  // a race only repeats the call
  if (args.device < 64 && done[args.device]) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess && args.device < 64) done[args.device] = true;
  return error;
}

}  // namespace gpu
}  // namespace sparseinfer
