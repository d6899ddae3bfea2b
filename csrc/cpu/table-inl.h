// The kernels of one level as a table: included last in kernels_<level>.cpp, after the level's simd header. SI_ISA is
// the level's name. It is plain data, without constructors at load time.
#pragma once

#include "cpu/bitmap-inl.h"
#include "cpu/bsr-inl.h"
#include "cpu/csr-inl.h"
#include "cpu/grouplist-inl.h"
#include "cpu/rowgroup-inl.h"
#include "cpu/rowlist-inl.h"
#include "cpu/sell-inl.h"
#if defined(SI_TILES)
#include "cpu/bsr_tiles-inl.h"
#include "cpu/tilemap-inl.h"
#endif

#define SI_TEXT_(s) #s
#define SI_TEXT(s) SI_TEXT_(s)
#define SI_JOIN_(a, b) a##b
#define SI_JOIN(a, b) SI_JOIN_(a, b)

namespace sparseinfer {

extern const SpmmKernel SI_JOIN(kernels_, SI_ISA)[];
extern const int SI_JOIN(kernel_count_, SI_ISA);

const SpmmKernel SI_JOIN(kernels_, SI_ISA)[] = {
#define SI_ROW(packing, storage, tile, implementation, min_tokens, bucket_tokens, max_tokens, min_sparsity, \
               max_sparsity, wide_panel)                                                                    \
  {"spmm_" #packing "_" #storage "_" #tile "__" SI_TEXT(SI_ISA),                                            \
   #packing,                                                                                                \
   #storage,                                                                                                \
   #tile,                                                                                                   \
   SI_TEXT(SI_ISA),                                                                                         \
   implementation::kTakesConv,                                                                              \
   implementation::kNative,                                                                                 \
   min_tokens,                                                                                              \
   bucket_tokens,                                                                                           \
   max_tokens,                                                                                              \
   min_sparsity,                                                                                            \
   max_sparsity,                                                                                            \
   wide_panel,                                                                                              \
   implementation::kTileTokens,                                                                             \
   implementation::workspace_bytes,                                                                         \
   implementation::scratch_bytes,                                                                           \
   implementation::prepare_items,                                                                           \
   implementation::prepare,                                                                                 \
   implementation::run},
#if defined(SI_TILES)
#define SI_SPMM(...)
#define SI_SPMM_TILES SI_ROW
#else
#define SI_SPMM SI_ROW
#define SI_SPMM_TILES(...)
#endif
#include "cpu/kernels.inc"
#undef SI_SPMM
#undef SI_SPMM_TILES
};
const int SI_JOIN(kernel_count_, SI_ISA) = sizeof(SI_JOIN(kernels_, SI_ISA)) / sizeof(SpmmKernel);

}  // namespace sparseinfer
