// Vectors of 4 and 8 floats for AVX2 with FMA and F16C. AVX-512 levels also use them for few tokens: two vectors of 8
// cost no more than one of 16 there, and a broadcast from memory costs half.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "cpu/unroll.h"
#include "sparseinfer/halves.h"

namespace sparseinfer {
namespace {

struct F32x4 {
  using V = __m128;
  static constexpr int L = 4;

  static V zero() { return _mm_setzero_ps(); }
  static V set1(float v) { return _mm_set1_ps(v); }
  static V load(const float* p) { return _mm_loadu_ps(p); }
  static V load(const BF16* p) {
    return _mm_castsi128_ps(
        _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 16));
  }
  static V load(const F16* p) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
  // Dtypes without instructions of their own: one value at a time (halves.h).
  template <class T>
  static V load(const T* p) {
    float values[L];
    for (int i = 0; i < L; ++i) values[i] = sparseinfer::widen(p[i]);
    return load(values);
  }
  static void store(float* p, V v) { _mm_storeu_ps(p, v); }
  static V add(V a, V b) { return _mm_add_ps(a, b); }
  static V mul(V a, V b) { return _mm_mul_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm_fmadd_ps(a, b, c); }
  using Quad = V;
  template <class T>
  static Quad load_quad(const T* p) {
    return load(p);
  }
  template <int I>
  static V lane(Quad q) {
    return _mm_permute_ps(q, I * 0x55);
  }
  template <int I>
  static __m128i lane_pair(Quad q) {
    return _mm_castps_si128(lane<I>(q));
  }

  // 8 tokens of bf16 in one register. `interleave` pairs two columns of them token by token: the first 4 tokens, then
  // the last 4.
  using P = __m128i;
  static P load_pairs(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static P set1_pair(const uint16_t* p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return _mm_set1_epi32(pair);
  }
  static void interleave(P a, P b, P (&out)[2]) {
    out[0] = _mm_unpacklo_epi16(a, b);
    out[1] = _mm_unpackhi_epi16(a, b);
  }
  static V dot(V acc, P x, P w) {
#if defined(__AVX512BF16__)
    return _mm_dpbf16_ps(acc, reinterpret_cast<__m128bh>(x), reinterpret_cast<__m128bh>(w));
#else
    return fma(high(x), high(w), fma(low(x), low(w), acc));
#endif
  }

 private:
  static V low(P p) { return _mm_castsi128_ps(_mm_slli_epi32(p, 16)); }
  static V high(P p) { return _mm_castsi128_ps(_mm_and_si128(p, _mm_set1_epi32(-65536))); }
};

struct F32x8 {
  using V = __m256;
  static constexpr int L = 8;

  static V zero() { return _mm256_setzero_ps(); }
  static V set1(float v) { return _mm256_set1_ps(v); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const BF16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static V load(const Dword* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static V load(const F16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static void store(BF16* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(v)); }
  static void store(F16* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static V load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // Dtypes without instructions of their own: one value at a time (halves.h).
  template <class T>
  static V load(const T* p) {
    float values[L];
    for (int i = 0; i < L; ++i) values[i] = sparseinfer::widen(p[i]);
    return load(values);
  }
  template <class T>
  static void store(T* p, V v) {
    float values[L];
    store(values, v);
    for (int i = 0; i < L; ++i) sparseinfer::narrow(values[i], p + i);
  }
  template <class T>
  static V load_partial(const T* p, int count) {
    T values[L] = {};
    memcpy(values, p, static_cast<size_t>(count) * sizeof(T));
    return load(values);
  }
  template <class T>
  static void store_partial(T* p, V v, int count) {
    T values[L];
    store(values, v);
    memcpy(p, values, static_cast<size_t>(count) * sizeof(T));
  }
  static V load_partial(const float* p, int count) { return _mm256_maskload_ps(p, first(count)); }
  // Lanes [begin, end) of a vector, which alone are read; the others are as in `otherwise`.
  using Lanes = __m256i;
  static Lanes lanes_between(int begin, int end) { return _mm256_andnot_si256(first(begin), first(end)); }
  static V load(const float* p, Lanes lanes, V otherwise) {
    return _mm256_blendv_ps(otherwise, _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes));
  }
  static void store_partial(float* p, V v, int count) { _mm256_maskstore_ps(p, first(count), v); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  // A NaN in b is returned.
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  // A NaN in either is returned.
  static V max_or_nan(V a, V b) { return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
  static V abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V select_negative(V sign, V if_negative, V otherwise) {
    return _mm256_blendv_ps(otherwise, if_negative, _mm256_cmp_ps(sign, zero(), _CMP_LT_OQ));
  }
  // Elements 0, 2, ... of a and then b.
  static V evens(V a, V b) {
    const __m256d quarters = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(quarters, 0xD8));
  }
  // a * 2^e for integral e in [-252, 254]: in two steps, because 2^e alone may not be a normal float.
  static V scale(V a, V e) {
    const __m256i whole = _mm256_cvtps_epi32(e);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return mul(mul(a, pow2(half)), pow2(_mm256_sub_epi32(whole, half)));
  }
  static float sum(V a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  static float largest(V a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  // Four weights in every 128-bit lane: one load for four broadcasts, which are in-lane permutes off the load ports.
  using Quad = V;
  static Quad load_quad(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
  template <class T>
  static Quad load_quad(const T* p) {
    const __m128 four = F32x4::load(p);
    return _mm256_set_m128(four, four);
  }
  template <int I>
  static V lane(Quad q) {
    return _mm256_permute_ps(q, I * 0x55);
  }
  template <int I>
  static __m256i lane_pair(Quad q) {
    return _mm256_castps_si256(lane<I>(q));
  }
  static V gather(const float* base, const uint32_t* index) {
    return _mm256_i32gather_ps(base, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
  }
  // 16 tokens of bf16 in one register; see F32x4.
  using P = __m256i;
  static P load_pairs(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static P set1_pair(const uint16_t* p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return _mm256_set1_epi32(pair);
  }
  static void interleave(P a, P b, P (&out)[2]) {
    out[0] = _mm256_unpacklo_epi16(a, b);
    out[1] = _mm256_unpackhi_epi16(a, b);
  }
  static V dot(V acc, P x, P w) {
#if defined(__AVX512BF16__)
    return _mm256_dpbf16_ps(acc, reinterpret_cast<__m256bh>(x), reinterpret_cast<__m256bh>(w));
#else
    return fma(high(x), high(w), fma(low(x), low(w), acc));
#endif
  }

  // 8 columns from `c` on of kTokens rows of x -> out[column][token].
  template <int kTokens, class T>
  static void to_columns(const T* const* rows, int64_t c, float* out, int64_t stride) {
    V v[kTokens];
    SI_UNROLL
    for (int i = 0; i < kTokens; ++i) v[i] = load(rows[i] + c);
    if constexpr (kTokens == 8) {
      transpose(v);
      SI_UNROLL
      for (int i = 0; i < 8; ++i) store(out + i * stride, v[i]);
    } else {
      transpose_lanes(v);
      SI_UNROLL
      for (int i = 0; i < 4; ++i) {
        _mm_storeu_ps(out + i * stride, _mm256_castps256_ps128(v[i]));
        _mm_storeu_ps(out + (i + 4) * stride, _mm256_extractf128_ps(v[i], 1));
      }
    }
  }

  // The same for 8 tokens of bf16.
  static void halves_to_columns(const uint16_t* const* rows, int64_t c, uint16_t* out, int64_t stride) {
    __m128i v[8], w[8];
    SI_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + c));
    SI_UNROLL
    for (int i = 0; i < 8; i += 2) {
      w[i] = _mm_unpacklo_epi16(v[i], v[i + 1]);
      w[i + 1] = _mm_unpackhi_epi16(v[i], v[i + 1]);
    }
    SI_UNROLL
    for (int i = 0; i < 8; i += 4) {
      v[i] = _mm_unpacklo_epi32(w[i], w[i + 2]);
      v[i + 1] = _mm_unpackhi_epi32(w[i], w[i + 2]);
      v[i + 2] = _mm_unpacklo_epi32(w[i + 1], w[i + 3]);
      v[i + 3] = _mm_unpackhi_epi32(w[i + 1], w[i + 3]);
    }
    SI_UNROLL
    for (int i = 0; i < 4; ++i) {
      __m128i* to = reinterpret_cast<__m128i*>(out + 2 * i * stride);
      _mm_storeu_si128(to, _mm_unpacklo_epi64(v[i], v[i + 4]));
      to = reinterpret_cast<__m128i*>(out + (2 * i + 1) * stride);
      _mm_storeu_si128(to, _mm_unpackhi_epi64(v[i], v[i + 4]));
    }
  }

  // Four floats, and those kHalf floats behind them.
  template <int kHalf>
  static V join(const float* p) {
    if constexpr (kHalf == 4) return load(p);
    return join(p, p + kHalf);
  }

  // sums[8 rows][tokens] -> one vector of 8 rows per token; tokens 4 to 7 lie kHalf floats behind tokens 0 to 3.
  template <int kTokens, int kHalf>
  static void to_rows(const float* sums, int64_t stride, V (&out)[kTokens]) {
    if constexpr (kTokens == 8) {
      SI_UNROLL
      for (int i = 0; i < 8; ++i) out[i] = join<kHalf>(sums + i * stride);
      transpose(out);
    } else {
      SI_UNROLL
      for (int i = 0; i < 4; ++i) out[i] = join(sums + i * stride, sums + (i + 4) * stride);
      transpose_lanes(out);
    }
  }
  // The first and the second column of each pair, widened.
  static V low(P p) { return _mm256_castsi256_ps(_mm256_slli_epi32(p, 16)); }
  static V high(P p) { return _mm256_castsi256_ps(_mm256_and_si256(p, _mm256_set1_epi32(-65536))); }

 private:
  // {low[0..3], high[0..3]}
  static V join(const float* low, const float* high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
  }
  // In both 128-bit lanes: rows[i][c] -> rows[c][i].
  static void transpose_lanes(V* rows) {
    const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(rows[0], rows[1]));
    const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(rows[0], rows[1]));
    const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(rows[2], rows[3]));
    const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(rows[2], rows[3]));
    rows[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
    rows[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
    rows[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
    rows[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
  }
  // rows[i][c] -> rows[c][i]
  static void transpose(V (&rows)[8]) {
    transpose_lanes(rows);
    transpose_lanes(rows + 4);
    SI_UNROLL
    for (int i = 0; i < 4; ++i) {
      const V low = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31);
      rows[i] = low;
    }
  }
  static __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static V pow2(__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  }
  // To nearest, ties to even; NaN becomes a quiet NaN. The instruction also flushes subnormals.
  static __m128i narrow_bf16(V v) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(v));
#else
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
    rounded = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
#endif
  }
};

}  // namespace
}  // namespace sparseinfer
