// Vector types of the level avx2: AVX2 with FMA and F16C, vectors of 8 floats.
#pragma once

#include "cpu/int8_x86.h"
#include "cpu/shapes.h"
#include "cpu/simd_x86.h"

namespace sparseinfer {
namespace {

struct Level {
  // F32x8 and what only few-token kernels need.
  struct Row : F32x8 {
    using Mask = uint64_t;
    using PairMask = uint64_t;
    static Mask mask(const uint64_t* word, int part) { return *word >> (8 * part) & 0xff; }
    static PairMask pair_mask(const uint64_t* word, int part) { return *word >> (16 * part) & 0xffff; }
    static V fma_masked(uint64_t mask, V a, const float* b, V c) {
      return F32x8::fma(a, _mm256_maskload_ps(b, lanes(mask)), c);
    }
    // Values of 8 columns, of which those in the mask are stored, one after another.
    static V expand(V stored, uint64_t mask) {
      const __m256i kept = lanes(mask);
      return _mm256_and_ps(_mm256_permutevar8x32_ps(stored, ranks(mask)), _mm256_castsi256_ps(kept));
    }
    // 16 columns of bf16, and the x values that meet them.
    static P expand_pairs(const uint16_t* stored, uint64_t mask) {
      const uint16_t* rest = stored + __builtin_popcountll(mask & 0xff);
      const __m256i low = dwords(expand(F32x8::load(reinterpret_cast<const BF16*>(stored)), mask & 0xff));
      const __m256i high = dwords(expand(F32x8::load(reinterpret_cast<const BF16*>(rest)), mask >> 8));
      return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    }
    static P load_pairs_masked(const uint16_t* p, uint64_t mask) {
      const __m256i bits =
          _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
      const __m256i kept =
          _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(mask)), bits), bits);
      return _mm256_and_si256(load_pairs(p), kept);
    }
    // Positions of the set bits of a mask, counted from `base`, and how many there are; `out` has room for 64.
    static int positions(uint64_t mask, int base, uint16_t* out) {
      int count = 0;
      for (; mask != 0; mask &= mask - 1) out[count++] = static_cast<uint16_t>(base + __builtin_ctzll(mask));
      return count;
    }

   private:
    static __m256i lanes(uint64_t mask) {
      const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
      return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bits), bits);
    }
    // For every lane the number of set bits below it, 8 bits each: a multiplication adds the bits up.
    static __m256i ranks(uint64_t mask) {
      const uint64_t spread = (mask * 0x8040201008040201u & 0x8080808080808080u) >> 7;  // bit 7 - i in byte i
      const uint64_t bits = __builtin_bswap64(spread);
      const uint64_t below = bits * 0x0101010101010100u;
      return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(below)));
    }
    static __m256i dwords(V v) { return _mm256_srli_epi32(_mm256_castps_si256(v), 16); }
  };
  using Transposer = F32x8;
  using Ints = I32x8;
  template <int>
  using Finisher = Ints;  // vectors of rows, in which the epilogue writes y
  static constexpr int kRegisters = 16;
  static constexpr bool kPairDot = false;  // no instruction multiplies pairs of bf16
  static constexpr int kSellTokens = 4;

  // sell: `kWindow` consecutive values of x in registers, the last of them zero, looked up by byte index.
  static constexpr int kWindows[2] = {8, 16}, kPairWindow = 0;
  static constexpr int kSteps[3] = {1, 2, 4};
  template <int kWindow>
  struct Window {
    __m256 part[kWindow / 8];
    using Index = __m256i;
    void load(const float* x) {
      const __m256i but_last = _mm256_setr_epi32(-1, -1, -1, -1, -1, -1, -1, 0);
      if constexpr (kWindow == 16) part[0] = _mm256_loadu_ps(x);
      part[kWindow / 8 - 1] = _mm256_maskload_ps(x + kWindow - 8, but_last);
    }
    static Index index(const uint8_t* p) {
      return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
    __m256 look_up(Index at) const {
      const __m256 low = _mm256_permutevar8x32_ps(part[0], at);
      if constexpr (kWindow == 8) return low;
      const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));
      return _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(part[kWindow / 8 - 1], at), upper);
    }
  };
  template <int>
  struct PairWindow;

  // The same for bytes, where padding needs no zero.
  static constexpr int kByteWindow = 16;
  static constexpr int kByteSteps[3] = {1, 2, 4};
  template <int kWindow>
  using ByteWindow = ByteWindow16<kWindow>;

  // The same from memory; position `last` counts as zero.
  struct AnyWindow {
    const float* x;
    int last;
    __m256 look_up(const uint8_t* offsets) const {
      const __m256i at = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(offsets)));
      const __m256i used = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), at);
      return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), x, at, _mm256_castsi256_ps(used), 4);
    }
  };
  struct AnyPairWindow {
    const uint16_t* x;
    int last;
    Row::P look_up(const uint8_t* offsets) const {
      const __m256i both = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets)));
      const __m256i low = half(_mm256_and_si256(both, _mm256_set1_epi32(255)));
      return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(0xffff)),
                             _mm256_slli_epi32(half(_mm256_srli_epi32(both, 8)), 16));
    }

   private:
    // Gathers 4 bytes for every 2: x is readable past the window.
    __m256i half(__m256i at) const {
      const __m256i used = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), at);
      return _mm256_mask_i32gather_epi32(_mm256_setzero_si256(), reinterpret_cast<const int*>(x), at, used, 2);
    }
  };

  // Calls f(Shape) for the tile that holds `tokens`; 16 registers hold the sums of `rows` rows, x and a weight.
  template <TileMode kMode, int kRows, class F>
  static SI_INLINE void with_tile(int64_t tokens, F f) {
    constexpr int kWide = kMode == TileMode::kPairs ? 2 : 1;  // tokens per lane
    if (tokens <= 4 * kWide) return f(Shape<F32x4, 1, kMode>{});
    if (tokens <= 8 * kWide) return f(Shape<F32x8, 1, kMode>{});
    if constexpr (kRows == 1) {
      if (tokens <= 16 * kWide) return f(Shape<F32x8, 2, kMode>{});
      if (tokens <= 32 * kWide) return f(Shape<F32x8, 4, kMode>{});
      if constexpr (kMode != TileMode::kPairs) return f(Shape<F32x8, 8, kMode>{});
    } else {
      if constexpr (kMode != TileMode::kPairs) return f(Shape<F32x8, 2, kMode>{});
    }
  }
  template <TileMode kMode, int kRows>
  static constexpr int kTileTokens = kRows == 1 ? 64 : 16;

  // The same for tiles of bytes.
  template <TileMode kMode, class F>
  static SI_INLINE void with_byte_tile(int64_t tokens, F f) {
    with_narrow_byte_tile<kMode>(tokens, f);
  }
  template <TileMode kMode>
  static constexpr int kByteTileTokens = kMode == TileMode::kBytes ? 32 : 16;
};

}  // namespace
}  // namespace sparseinfer
