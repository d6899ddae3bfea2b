// The host's description of a CUDA kernel: a row of kernels.inc, and a function that launches it.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "sparseinfer/gpu_kernels.h"
#include "sparseinfer/gpu_packings.h"

namespace sparseinfer {
namespace gpu {

// Epilogues compute the activations up to this one; callers compute the others from y. With a copy of the epilogue for
// each of them the tiled kernels spilled registers.
constexpr Activation kLastActivation = Activation::kSilu;

// spmm        y[m, n] = activation(x[m, k] . W[n, k]^T + bias[n]); x, W and y have one dtype, all sums are fp32
// decompress  y[n, k] = W[n, k], zeros included; m and bias say nothing
struct Args {
  const void* x;     // [m, k], row stride ldx elements, device memory; for tiled packings zero from k to the next 8
  void* y;           // [m, n] or [n, k], row stride ldy elements, base and rows 16-byte aligned for decompress
  const void* bias;  // [n], bias_dtype, nullable
  const char* blob;  // the packing, device memory
  Header w;          // its header, host copy
  int64_t m, ldx, ldy;
  DType bias_dtype;  // fp32 or that of y
  Activation activation;
  int device;
  int multiprocessors;
  int shared_bytes;  // that one block of threads may ask for
  cudaStream_t stream;
};

// Queues one kernel on args.stream and returns: no allocation, no synchronisation, capturable in a graph.
using Launch = cudaError_t (*)(const Args&);

struct Kernel : KernelRow {
  Launch launch;
};

extern const Kernel kKernels[];
extern const int kKernelCount;

}  // namespace gpu
}  // namespace sparseinfer
