// The CUDA kernels of this build: the rows of kernels.inc with their launchers.
#include "cuda/kernel.h"
#include "cuda/launchers.h"

namespace sparseinfer {
namespace gpu {

const Kernel kKernels[] = {
#define SI_CUDA_KERNEL(op, packing, dtype, unit, size, arch, block, most_tokens, min_tokens, max_tokens, min_sparsity, \
                       max_sparsity, launch)                                                                           \
  {SI_CUDA_KERNEL_ROW(op, packing, dtype, unit, size, arch, block, most_tokens, min_tokens, max_tokens, min_sparsity,  \
                      max_sparsity),                                                                                   \
   launch},
#include "cuda/kernels.inc"
#undef SI_CUDA_KERNEL
};
const int kKernelCount = static_cast<int>(sizeof kKernels / sizeof kKernels[0]);

}  // namespace gpu
}  // namespace sparseinfer
