// The tile instructions (AMX) under a few names, and how kernels use the eight registers. With the compile definition
// SPARSEINFER_EMULATE_TILES plain C++ stands behind the same names (amx_emulated.h), so that the kernels can be tested
// on any CPU with avx512bf16.
//
// A tile is 16 rows of 64 bytes. Product: C[16 tokens][16 outputs] += A[16 tokens][depth] . B[depth][16 outputs], where
// a row of B holds the 2 (bf16) or 4 (int8) inputs that one step multiplies, for each output side by side. Or, with
// weights as A and x as B, C[16 outputs][16 tokens].
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/unroll.h"

// Marks a level whose only kernels are those on tiles (table-inl.h).
#define SI_TILES

namespace sparseinfer {
namespace {

constexpr int64_t kTileRows = 16, kTileRowBytes = 64, kTileBytes = 1024;

// Operand of ldtilecfg. Palette 1: 8 registers, each of `rows` rows of `row_bytes` bytes.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Registers 0 to 3 hold sums, 4 and 5 x, 6 and 7 weights.
constexpr int kTileX = 4, kTileWeights = 6;

// `tokens`: rows of x and of the sums. A tile with fewer rows is not multiplied faster, but loaded and stored.
SI_INLINE TileConfig tile_config(int64_t tokens) {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = static_cast<uint16_t>(kTileRowBytes);
    config.rows[i] = static_cast<uint8_t>(i < kTileWeights ? tokens : kTileRows);
  }
  return config;
}

// Of products whose left operand is the weights: x and sums have rows of `bytes` bytes.
SI_INLINE TileConfig turned_config(int64_t bytes) {
  TileConfig config = tile_config(kTileRows);
  for (int i = 0; i < kTileWeights; ++i) config.row_bytes[i] = static_cast<uint16_t>(bytes);
  return config;
}

}  // namespace
}  // namespace sparseinfer

#if defined(SPARSEINFER_EMULATE_TILES)
#include "cpu/amx_emulated.h"
#else

namespace sparseinfer {
namespace {
namespace tile {

// The operands in memory say what is read and written: the intrinsics of GCC 12 do not, and stores before them may be
// moved behind them. Most tiles lie in memory as they are, row after row.
struct Memory {
  char bytes[kTileBytes];
};

SI_INLINE void load_config(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config)); }
SI_INLINE void release() { __asm__ volatile("tilerelease"); }

template <int T>
SI_INLINE void zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
SI_INLINE void load(const void* from) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(kTileRowBytes), "i"(T),
                   "m"(*static_cast<const Memory*>(from)));
}
template <int T>
SI_INLINE void store(void* to) {
  __asm__ volatile("tilestored %%tmm%c3, (%1,%2,1)"
                   : "=m"(*static_cast<Memory*>(to))
                   : "r"(to), "r"(kTileRowBytes), "i"(T));
}

// The same with rows further apart.
template <int T>
SI_INLINE void load_rows(const void* from, int64_t step) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(T) : "memory");
}
template <int T>
SI_INLINE void store_rows(void* to, int64_t step) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(T) : "memory");
}

#define SI_TILE_DOT(name, instruction)                                                      \
  template <int C, int A, int B>                                                            \
  SI_INLINE void name() {                                                                   \
    __asm__ volatile(instruction " %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); \
  }
SI_TILE_DOT(dot_bf16, "tdpbf16ps")
SI_TILE_DOT(dot_u8_i8, "tdpbusd")
SI_TILE_DOT(dot_i8_u8, "tdpbsud")
#undef SI_TILE_DOT

}  // namespace tile
}  // namespace
}  // namespace sparseinfer
#endif
