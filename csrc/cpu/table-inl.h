// The kernels of one level as a table: included last in kernels_<level>.cpp, after the level's simd header. SI_ISA is
// the level's name. It is plain data, without constructors at load time.
#pragma once

#include "cpu/attention-inl.h"
#include "cpu/bitmap-inl.h"
#include "cpu/bsr-inl.h"
#include "cpu/csr-inl.h"
#include "cpu/depthwise-inl.h"
#include "cpu/grouplist-inl.h"
#include "cpu/images-inl.h"
#include "cpu/norm-inl.h"
#include "cpu/probe-inl.h"
#include "cpu/rowgroup-inl.h"
#include "cpu/rowlist-inl.h"
#include "cpu/sell-inl.h"
#if defined(SI_TILES)
#include "cpu/bsr_tiles-inl.h"
#include "cpu/grouptile-inl.h"
#include "cpu/tilemap-inl.h"
#endif

#define SI_TEXT_(s) #s
#define SI_TEXT(s) SI_TEXT_(s)
#define SI_JOIN_(a, b) a##b
#define SI_JOIN(a, b) SI_JOIN_(a, b)

namespace sparseinfer {

namespace {

// Kernels that read images as bytes.
template <class Kernel, class = void>
struct ReadsBytes {
  static constexpr bool value = false;
};
template <class Kernel>
struct ReadsBytes<Kernel, decltype(void(Kernel::kBytes))> {
  static constexpr bool value = Kernel::kBytes && Kernel::kTakesConv;
};

}  // namespace

#if defined(SI_TILES)
constexpr bool kLevelHasTiles = true;
#else
constexpr bool kLevelHasTiles = false;
#endif

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
   kLevelHasTiles,                                                                                          \
   implementation::kNative,                                                                                 \
   min_tokens,                                                                                              \
   bucket_tokens,                                                                                           \
   max_tokens,                                                                                              \
   min_sparsity,                                                                                            \
   max_sparsity,                                                                                            \
   wide_panel,                                                                                              \
   implementation::kTileTokens,                                                                             \
   ReadsBytes<implementation>::value ? find_ranges : nullptr,                                               \
   ReadsBytes<implementation>::value ? round_images : nullptr,                                              \
   implementation::workspace_bytes,                                                                         \
   implementation::scratch_bytes,                                                                           \
   implementation::prepare_items,                                                                           \
   implementation::prepare,                                                                                 \
   implementation::run,                                                                                     \
   norm_rows},
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

extern const ImageOps SI_JOIN(image_ops_, SI_ISA);
const ImageOps SI_JOIN(image_ops_, SI_ISA) = {max_pool, mean_of_image, add_images, scale_images, depthwise};

extern const AttentionOps SI_JOIN(attention_ops_, SI_ISA);
const AttentionOps SI_JOIN(attention_ops_, SI_ISA) = {attention::scratch_bytes, attention::run};

extern const ProbeLoop SI_JOIN(probe_loops_, SI_ISA)[];
extern const int SI_JOIN(probe_loop_count_, SI_ISA);

// Steps that the level emulates have no rate. A level with other units adds their loops.
const ProbeLoop SI_JOIN(probe_loops_, SI_ISA)[] = {
    {"clock", 16, probe_clock},
    {"read", double{kProbeReads} * Level::Row::L * sizeof(float), probe_read},
    {"fma", double{kProbeSums} * Level::Row::L, probe_fma},
#if defined(__AVX512BF16__)
    {"dot", 2.0 * kProbeSums * Level::Row::L, probe_dot},
#endif
#if defined(__AVX512VNNI__)
    {"vnni", 4.0 * kProbeSums * Level::Row::L, probe_vnni},
#endif
#if defined(SI_TILES)
    {"tile_bf16", 4.0 * kTileRows * 16 * 32, probe_tile_bf16},
    {"tile_int8", 4.0 * kTileRows * 16 * 64, probe_tile_int8},
#endif
};
const int SI_JOIN(probe_loop_count_, SI_ISA) = sizeof(SI_JOIN(probe_loops_, SI_ISA)) / sizeof(ProbeLoop);

}  // namespace sparseinfer
