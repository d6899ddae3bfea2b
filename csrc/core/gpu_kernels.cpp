// The rows of cuda/kernels.inc without their launchers, for builds without CUDA.
#include "sparseinfer/gpu_kernels.h"

namespace sparseinfer {
namespace gpu {

const KernelRow kKernelRows[] = {
#define SI_CUDA_KERNEL(op, packing, dtype, unit, size, arch, block, most_tokens, min_tokens, max_tokens, min_sparsity, \
                       max_sparsity, launch)                                                                           \
  SI_CUDA_KERNEL_ROW(op, packing, dtype, unit, size, arch, block, most_tokens, min_tokens, max_tokens, min_sparsity,   \
                     max_sparsity),
#include "cuda/kernels.inc"
#undef SI_CUDA_KERNEL
};
const int kKernelRowCount = static_cast<int>(sizeof kKernelRows / sizeof kKernelRows[0]);

}  // namespace gpu
}  // namespace sparseinfer
