// csrc/cuda/launch.cpp with a runtime and a kernel of its own, for tests/test_cuda_launch.py.
#include <cstdio>

#include "cuda/launch.h"

using namespace sparseinfer;

namespace {

int g_driver, g_current, g_kernel_device, g_launches;
cudaError_t g_answer;
gpu::Args g_args;

cudaError_t kernel(const gpu::Args& args) {
  g_args = args;
  g_kernel_device = g_current;
  ++g_launches;
  return g_answer;
}

}  // namespace

cudaError_t cudaDriverGetVersion(int* version) {
  *version = g_driver;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 4;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  constexpr int kMajors[] = {7, 8, 9, 10};
  *properties = {"A GPU", kMajors[device], 0, 100 + device, 227 * 1024};
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = g_current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  g_current = device;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid argument"; }

// One launch of csr of fp32 in a process that works with device `current`; the kernel answers with an error if `fails`.
// Returns the device that it was launched on, -1 where it was not; -2 with the exception's words in `message` [300].
extern "C" int launched(int driver, int current, int device, int capability, int next_capability, int64_t m, int64_t n,
                        int64_t k, int64_t ldx, int fails, char* message) {
  g_driver = driver, g_current = current, g_kernel_device = -1, g_launches = 0;
  g_answer = fails ? cudaErrorInvalidValue : cudaSuccess;
  gpu::Kernel row{SI_CUDA_KERNEL_ROW(spmm, csr, f32, t, 32, simt, 1, 0, 1, 0, 0.0, 1.0), &kernel};
  row.capability = capability, row.next_capability = next_capability;
  try {
    gpu::Args args{};
    args.w = gpu::layout(gpu::Kind::kCsr, DType::kF32, n, k, 0, 1, 0);
    args.m = m, args.ldx = ldx, args.ldy = n, args.device = device;
    gpu::launch(row, args, DType::kF32);
  } catch (const std::exception& error) {
    std::snprintf(message, 300, "%s", error.what());
    return g_current == current ? -2 : -3;
  }
  if (g_launches > 0 && g_args.multiprocessors != 100 + device) return -3;
  return g_current == current ? g_kernel_device : -3;
}
