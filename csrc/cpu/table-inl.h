// The kernels of one level as a table. SI_ISA is the level's name. Plain data: no constructor runs at load.
#pragma once

#define SI_TEXT_(s) #s
#define SI_TEXT(s) SI_TEXT_(s)
#define SI_JOIN_(a, b) a##b
#define SI_JOIN(a, b) SI_JOIN_(a, b)

namespace sparseinfer {

extern const SpmmKernel SI_JOIN(kernels_, SI_ISA)[];
extern const int SI_JOIN(kernel_count_, SI_ISA);

const SpmmKernel SI_JOIN(kernels_, SI_ISA)[] = {
#define SI_SPMM(packing, dtype, tile, implementation)          \
  {"spmm_" #packing "_" #dtype "_" #tile "__" SI_TEXT(SI_ISA), \
   #packing,                                                   \
   #dtype,                                                     \
   #tile,                                                      \
   SI_TEXT(SI_ISA),                                            \
   implementation::workspace_bytes,                            \
   implementation::scratch_bytes,                              \
   implementation::prepare_items,                              \
   implementation::prepare,                                    \
   implementation::run},
#include "cpu/kernels.inc"
#undef SI_SPMM
};
const int SI_JOIN(kernel_count_, SI_ISA) = sizeof(SI_JOIN(kernels_, SI_ISA)) / sizeof(SpmmKernel);

}  // namespace sparseinfer
