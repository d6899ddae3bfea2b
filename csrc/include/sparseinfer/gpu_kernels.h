// The description of a CUDA kernel from its row in cuda/kernels.inc, without the launch function, so that builds
// without CUDA have it too.
#pragma once

#include <stdint.h>

#include <string_view>

namespace sparseinfer {
namespace gpu {

struct KernelRow {
  const char* name;                   // {op}_{packing}_{dtype}_{tile}__{arch}: log name, test id and bench row
  const char* op;                     // "spmm" or "decompress"
  const char* packing;                // name of the packing it reads
  const char* dtype;                  // of W, x and y
  const char* tile;                   // {unit}{size}, as in the name
  const char* arch;                   // the folder of cuda/ that it lies in
  int capability;                     // least compute capability, 10 * major + minor
  int next_capability;                // first one that its machine code does not run on; 0: none
  int64_t block;                      // of the packing; csr: 1
  int64_t tile_tokens;                // tokens that a block of threads computes; 0: the row does not say
  int64_t panel;                      // decompress: columns that are written out together; else 0
  int64_t most_tokens;                // a launch of more is refused; 0: any number
  int64_t min_tokens, max_tokens;     // of the calls it is meant for; max_tokens 0: no limit
  double min_sparsity, max_sparsity;  // of the weights it is meant for; min > max: no plan names it
};

// Machine code for sm80 and simt comes with PTX, which newer devices compile; wgmma exists on 9.0 alone.
constexpr int capability(std::string_view arch) { return arch == "sm90" ? 90 : 80; }
constexpr int next_capability(std::string_view arch) { return arch == "sm90" ? 91 : 0; }

// A row as a KernelRow; the arguments are those of SI_CUDA_KERNEL in cuda/kernels.inc.
#define SI_CUDA_KERNEL_ROW(op, packing, dtype, unit, size, arch, block, most_tokens, min_tokens, max_tokens, \
                           min_sparsity, max_sparsity)                                                       \
  {#op "_" #packing "_" #dtype "_" #unit #size "__" #arch,                                                   \
   #op,                                                                                                      \
   #packing,                                                                                                 \
   #dtype,                                                                                                   \
   #unit #size,                                                                                              \
   #arch,                                                                                                    \
   ::sparseinfer::gpu::capability(#arch),                                                                    \
   ::sparseinfer::gpu::next_capability(#arch),                                                               \
   block,                                                                                                    \
   *#unit == 't' ? size : 0,                                                                                 \
   *#unit == 'p' ? size : 0,                                                                                 \
   most_tokens,                                                                                              \
   min_tokens,                                                                                               \
   max_tokens,                                                                                               \
   min_sparsity,                                                                                             \
   max_sparsity}

// Every row, in the order of cuda/kernels.inc, whether this build has the kernels or not.
extern const KernelRow kKernelRows[];
extern const int kKernelRowCount;

}  // namespace gpu
}  // namespace sparseinfer
