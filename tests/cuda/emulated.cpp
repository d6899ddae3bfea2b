// The CUDA kernels on a CPU, for tests/test_cuda_emulated.py: their sources are compiled beside this file with the
// headers in stubs/ ahead of the real ones.
#include <cstdio>
#include <cstring>
#include <exception>

#include "cuda/kernel.h"

using namespace sparseinfer;

// Runs a kernel on CPU memory. `header` is that of the packing; 0 multiprocessors never, tiles are chosen by them.
// Returns 0, or 1 with what went wrong in `message` [200].
extern "C" int emulated(const char* name, const void* header, const void* blob, const void* x, int64_t m, int64_t ldx,
                        const void* bias, int bias_dtype, void* y, int64_t ldy, int activation, int multiprocessors,
                        char* message) {
  try {
    for (int i = 0; i < gpu::kKernelCount; ++i) {
      const gpu::Kernel& kernel = gpu::kKernels[i];
      if (std::strcmp(kernel.name, name) != 0) continue;
      gpu::Args args{};
      std::memcpy(&args.w, header, sizeof args.w);
      args.blob = static_cast<const char*>(blob);
      args.x = x;
      args.m = m;
      args.ldx = ldx;
      args.bias = bias;
      args.bias_dtype = static_cast<DType>(bias_dtype);
      args.y = y;
      args.ldy = ldy;
      args.activation = static_cast<Activation>(activation);
      args.multiprocessors = multiprocessors;
      args.shared_bytes = 227 * 1024;
      const int error = kernel.launch(args);
      std::snprintf(message, 200, "launch: error %d", error);
      return error != 0;
    }
    std::snprintf(message, 200, "no kernel %s", name);
  } catch (const std::exception& error) {
    std::snprintf(message, 200, "%s", error.what());
  }
  return 1;
}
