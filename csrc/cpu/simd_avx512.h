// Vectors of 16 floats for AVX-512 F/BW/DQ/VL; with BF16, VBMI and VBMI2 where the level has them.
#pragma once

#include "cpu/int8_avx512.h"
#include "cpu/shapes.h"
#include "cpu/simd_x86.h"

namespace sparseinfer {
namespace {

struct F32x16 {
  using V = __m512;
  static constexpr int L = 16;

  static V zero() { return _mm512_setzero_ps(); }
  static V set1(float v) { return _mm512_set1_ps(v); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const BF16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static V load(const F16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static V load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static V load_partial(const float* p, int count) { return _mm512_maskz_loadu_ps(first(count), p); }
  static V load_partial(const BF16* p, int count) { return widen(_mm256_maskz_loadu_epi16(first(count), p)); }
  static V load_partial(const F16* p, int count) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p)); }
  // Lanes [begin, end) of a vector, which alone are read; the others are as in `otherwise`.
  using Lanes = __mmask16;
  static Lanes lanes_between(int begin, int end) { return static_cast<Lanes>(first(end) & ~first(begin)); }
  static V load(const float* p, Lanes lanes, V otherwise) { return _mm512_mask_loadu_ps(otherwise, lanes, p); }
  // Dtypes without instructions of their own: one value at a time (halves.h).
  template <class T>
  static V load_partial(const T* p, int count) {
    float values[L] = {};
    for (int i = 0; i < count; ++i) values[i] = sparseinfer::widen(p[i]);
    return load(values);
  }
  template <class T>
  static V load(const T* p) {
    return load_partial(p, L);
  }
  template <class T>
  static void store_partial(T* p, V v, int count) {
    float values[L];
    store(values, v);
    for (int i = 0; i < count; ++i) sparseinfer::narrow(values[i], p + i);
  }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  template <class T>
  static void store(T* p, V v) {
    store_partial(p, v, L);
  }
  static void store_partial(float* p, V v, int count) { _mm512_mask_storeu_ps(p, first(count), v); }
  static void store_partial(BF16* p, V v, int count) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_mask_storeu_epi16(p, first(count), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  static void store_partial(F16* p, V v, int count) {
    _mm256_mask_storeu_epi16(p, first(count), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  // A NaN in b is returned.
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  // A NaN in either is returned.
  static V max_or_nan(V a, V b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
  }
  static V abs(V a) { return _mm512_abs_ps(a); }
  static V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V select_negative(V sign, V if_negative, V otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(sign, zero(), _CMP_LT_OQ), otherwise, if_negative);
  }
  // Elements 0, 2, ... of a and then b.
  static V evens(V a, V b) {
    const __m512i index = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutex2var_ps(a, index, b);
  }
  // a * 2^e for integral e
  static V scale(V a, V e) { return _mm512_scalef_ps(a, e); }
  static float sum(V a) { return _mm512_reduce_add_ps(a); }
  static float largest(V a) { return _mm512_reduce_max_ps(a); }
  using Quad = V;
  template <class T>
  static Quad load_quad(const T* p) {
    return _mm512_broadcast_f32x4(F32x4::load(p));
  }
  template <int I>
  static V lane(Quad q) {
    return _mm512_permute_ps(q, I * 0x55);
  }
  template <int I>
  static __m512i lane_pair(Quad q) {
    return _mm512_castps_si512(lane<I>(q));
  }
  static V gather(const float* base, const uint32_t* index) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(index), base, 4);
  }

  // 32 tokens of bf16 in one register; see F32x4.
  using P = __m512i;
  static P load_pairs(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static P set1_pair(const uint16_t* p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static void interleave(P a, P b, P (&out)[2]) {
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
  }
  static V dot(V acc, P x, P w) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
#else
    return fma(high(x), high(w), fma(low(x), low(w), acc));
#endif
  }

  // bitmap: values of 16 columns, of which those in the mask are stored, one after another. Zen 4 takes twice as long
  // to expand from memory, and waits for the old value of the target register: hence in place and in assembly.
  using Mask = __mmask16;
  static Mask mask(const uint64_t* word, int part) {
    return _load_mask16(reinterpret_cast<Mask*>(const_cast<uint64_t*>(word)) + part);
  }
  static V expand(V stored, Mask mask) {
    __asm__("vexpandps %0, %0%{%1%}%{z%}" : "+v"(stored) : "Yk"(mask));
    return stored;
  }
  static V fma_masked(Mask mask, V a, const float* b, V c) { return _mm512_mask3_fmadd_ps(a, load(b), c, mask); }

  // The same for 32 columns of bf16, and the x values that meet them.
  using PairMask = __mmask32;
  static PairMask pair_mask(const uint64_t* word, int part) {
    return _load_mask32(reinterpret_cast<PairMask*>(const_cast<uint64_t*>(word)) + part);
  }
  static P expand_pairs(const uint16_t* stored, PairMask mask) {
#if defined(__AVX512VBMI2__)
    P values = load_pairs(stored);
    __asm__("vpexpandw %0, %0%{%1%}%{z%}" : "+v"(values) : "Yk"(mask));
    return values;
#else
    const int low_count = __builtin_popcount(mask & 0xffff);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored)));
    const __m512i high =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored + low_count)));
    const __m256i first = _mm512_cvtepi32_epi16(_mm512_maskz_expand_epi32(static_cast<__mmask16>(mask), low));
    const __m256i last = _mm512_cvtepi32_epi16(_mm512_maskz_expand_epi32(static_cast<__mmask16>(mask >> 16), high));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), last, 1);
#endif
  }
  static P load_pairs_masked(const uint16_t* p, PairMask mask) { return _mm512_maskz_loadu_epi16(mask, p); }

  // Positions of the set bits of a mask, counted from `base`, and how many there are; `out` has room for 80.
  static int positions(uint64_t mask, int base, uint16_t* out) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i columns = _mm512_add_epi32(_mm512_set1_epi32(base), lanes);
    int count = 0;
    SI_UNROLL
    for (int i = 0; i < 4; ++i, mask >>= 16) {
      __m512i kept = columns;
      __asm__("vpcompressd %0, %0%{%1%}%{z%}" : "+v"(kept) : "Yk"(static_cast<__mmask16>(mask)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + count), _mm512_cvtepi32_epi16(kept));
      columns = _mm512_add_epi32(columns, _mm512_set1_epi32(16));
      count += __builtin_popcount(static_cast<uint32_t>(mask & 0xffff));
    }
    return count;
  }
  // The first and the second column of each pair, widened.
  static V low(P p) { return _mm512_castsi512_ps(_mm512_slli_epi32(p, 16)); }
  static V high(P p) { return _mm512_castsi512_ps(_mm512_and_si512(p, _mm512_set1_epi32(-65536))); }

  // sums[16 rows][tokens] -> one vector of 16 rows per token; tokens 4 to 7 lie kHalf floats behind tokens 0 to 3.
  template <int kTokens, int kHalf>
  static void to_rows(const float* sums, int64_t stride, V (&out)[kTokens]) {
    static_assert(kTokens == 8);
    // Rows i and i + 4 in one vector, transposed in parts of 4 rows and 4 tokens.
    V low[4], high[4];
    SI_UNROLL
    for (int i = 0; i < 4; ++i) {
      low[i] = join(F32x8::join<kHalf>(sums + i * stride), F32x8::join<kHalf>(sums + (i + 4) * stride));
      high[i] = join(F32x8::join<kHalf>(sums + (i + 8) * stride), F32x8::join<kHalf>(sums + (i + 12) * stride));
    }
    transpose_lanes(low);
    transpose_lanes(high);
    SI_UNROLL
    for (int i = 0; i < 4; ++i) {
      out[i] = _mm512_shuffle_f32x4(low[i], high[i], 0x88);
      out[i + 4] = _mm512_shuffle_f32x4(low[i], high[i], 0xdd);
    }
  }

 private:
  static V join(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }
  // In all 128-bit lanes: rows[i][c] -> rows[c][i].
  static void transpose_lanes(V (&rows)[4]) {
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[0], rows[1]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[0], rows[1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[2], rows[3]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[2], rows[3]));
    rows[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    rows[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    rows[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    rows[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
  }
  static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
  static V widen(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }
};

template <bool kWide>
struct FinisherOf {
  using type = I32x16Of<F32x16>;
};
template <>
struct FinisherOf<false> {
  using type = I32x8;
};

struct Level {
  using Row = F32x16;  // vectors of rows or columns, for few tokens
  using Transposer = F32x8;
  using Ints = I32x16Of<F32x16>;
  template <int kTokens>
  using Finisher = typename FinisherOf<(kTokens >= 8)>::type;  // vectors of rows, in which the epilogue writes y
  static constexpr int kRegisters = 32;
#if defined(__AVX512BF16__)
  static constexpr bool kPairDot = true;  // an instruction multiplies pairs of bf16
#else
  static constexpr bool kPairDot = false;
#endif
  static constexpr int kSellTokens = 8;

  // sell: `kWindow` consecutive values of x in registers, the last of them zero, looked up by byte index.
  static constexpr int kWindows[2] = {32, 64}, kPairWindow = 64;
  static constexpr int kSteps[3] = {2, 4, 8};
  template <int kWindow>
  struct Window;
  template <int>
  struct PairWindow {
    __m512i part[2];
    using Index = __m512i;
    void load(const uint16_t* x) {
      part[0] = _mm512_loadu_si512(x);
      part[1] = _mm512_maskz_loadu_epi16(0x7fffffff, x + 32);
    }
    static Index index(const uint8_t* p) {
      return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    Row::P look_up(Index at) const { return _mm512_permutex2var_epi16(part[0], at, part[1]); }
  };

  // The same for bytes, where padding needs no zero.
  static constexpr int kByteWindow = kByteWindow512;
  static constexpr int kByteSteps[3] = {1, 2, 4};
  template <int kWindow>
  using ByteWindow = ByteWindow512<kWindow>;

  // The same from memory; position `last` counts as zero.
  struct AnyWindow {
    const float* x;
    int last;
    __m512 look_up(const uint8_t* offsets) const {
      const __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets)));
      const __mmask16 used = _mm512_cmpneq_epi32_mask(at, _mm512_set1_epi32(last));
      return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), used, at, x, 4);
    }
  };
  struct AnyPairWindow {
    const uint16_t* x;
    int last;
    Row::P look_up(const uint8_t* offsets) const {
      uint16_t values[32];
      for (int i = 0; i < 32; ++i) values[i] = offsets[i] == last ? uint16_t{0} : x[offsets[i]];
      return Row::load_pairs(values);
    }
  };

  // Calls f(Shape) for the tile that holds `tokens`, at most 64, with 16 registers of sums for `rows` rows.
  // Loads and FMAs of 16 floats keep one a cycle, so vectors of 8 save half of every broadcast; from 17 tokens on the
  // number of instructions binds.
  template <TileMode kMode, int kRows, class F>
  static SI_INLINE void with_tile(int64_t tokens, F f) {
    constexpr int kWide = kMode == TileMode::kPairs ? 2 : 1;  // tokens per lane
    if (tokens <= 4 * kWide) return f(Shape<F32x4, 1, kMode>{});
    if (tokens <= 8 * kWide) return f(Shape<F32x8, 1, kMode>{});
    if constexpr (kMode == TileMode::kPairs) {
      if (tokens <= 32) return f(Shape<F32x16, 1, kMode>{});
      return f(Shape<F32x16, 2, kMode>{});
    } else {
      if (tokens <= 16) return f(Shape<F32x16, 1, kMode>{});
      if (tokens <= 32) return f(Shape<F32x16, 2, kMode>{});
      if (tokens <= 48) return f(Shape<F32x16, 3, kMode>{});
      return f(Shape<F32x16, 4, kMode>{});
    }
  }
  // 8 rows of 3 vectors: as many sums as registers hold, so that a product ends the fewest loops.
  template <TileMode kMode, int kRows>
  static constexpr int kTileTokens = kRows == 8 && kMode == TileMode::kFloat ? 48 : 64;

  // The same for tiles of bytes.
  template <TileMode kMode, class F>
  static SI_INLINE void with_byte_tile(int64_t tokens, F f) {
    if constexpr (kMode == TileMode::kBytes) {
      return tokens <= 32 ? with_narrow_byte_tile<kMode>(tokens, f) : f(Shape<Ints, 1, kMode>{});
    } else {
      if (tokens <= 8) return with_narrow_byte_tile<kMode>(tokens, f);
      if (tokens <= 16) return f(Shape<Ints, 1, kMode>{});
      if (tokens <= 32) return f(Shape<Ints, 2, kMode>{});
      if (tokens <= 48) return f(Shape<Ints, 3, kMode>{});
      return f(Shape<Ints, 4, kMode>{});
    }
  }
  template <TileMode kMode>
  static constexpr int kByteTileTokens = 64;
};

template <>
struct Level::Window<32> {
  __m512 part[2];
  using Index = __m512i;
  void load(const float* x) {
    part[0] = _mm512_loadu_ps(x);
    part[1] = _mm512_maskz_loadu_ps(0x7fff, x + 16);
  }
  static Index index(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  __m512 look_up(Index at) const { return _mm512_permutex2var_ps(part[0], at, part[1]); }
};

template <>
struct Level::Window<64> {
  __m512 part[4];
  struct Index {
    __m512i at;
    __mmask16 upper;
  };
  void load(const float* x) {
    SI_UNROLL
    for (int i = 0; i < 3; ++i) part[i] = _mm512_loadu_ps(x + 16 * i);
    part[3] = _mm512_maskz_loadu_ps(0x7fff, x + 48);
  }
  static Index index(const uint8_t* p) {
    const __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {at, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32))};
  }
  __m512 look_up(Index i) const {
    return _mm512_mask_blend_ps(i.upper, _mm512_permutex2var_ps(part[0], i.at, part[1]),
                                _mm512_permutex2var_ps(part[2], i.at, part[3]));
  }
};

}  // namespace
}  // namespace sparseinfer
