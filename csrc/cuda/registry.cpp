#include <string_view>

#include "cuda/kernel.h"
#include "cuda/launchers.h"

namespace sparseinfer {
namespace gpu {

namespace {

// Machine code for sm80 and simt comes with PTX, which newer devices compile; wgmma exists on 9.0 alone.
constexpr int capability(std::string_view arch) { return arch == "sm90" ? 90 : 80; }
constexpr int next_capability(std::string_view arch) { return arch == "sm90" ? 91 : 0; }

}  // namespace

const Kernel kKernels[] = {
#define SI_CUDA_KERNEL(op, packing, dtype, tile, arch, block, max_tokens, launch) \
  {#op "_" #packing "_" #dtype "_" #tile "__" #arch,                              \
   #op,                                                                           \
   #packing,                                                                      \
   #dtype,                                                                        \
   #tile,                                                                         \
   #arch,                                                                         \
   capability(#arch),                                                             \
   next_capability(#arch),                                                        \
   block,                                                                         \
   max_tokens,                                                                    \
   launch},
#include "cuda/kernels.inc"
#undef SI_CUDA_KERNEL
};
const int kKernelCount = static_cast<int>(sizeof kKernels / sizeof kKernels[0]);

}  // namespace gpu
}  // namespace sparseinfer
