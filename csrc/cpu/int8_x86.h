// Products of bytes for AVX2 and, with vectors of 128 and 256 bits, for AVX-512. x is unsigned, weights are signed,
// sums are int32 and exact. Without VNNI even and odd columns are widened to 16 bits and multiplied by vpmaddwd,
// because vpmaddubsw, which multiplies bytes, saturates sums of two.
#pragma once

#include "cpu/quads.h"
#include "cpu/shapes.h"
#include "cpu/simd_x86.h"

namespace sparseinfer {
namespace {

#if defined(__AVX512VNNI__)
constexpr bool kByteDot = true;  // an instruction multiplies four bytes and adds them up
#else
constexpr bool kByteDot = false;
#endif

struct I32x4 : Quads<I32x4> {
  using Floats = F32x4;
  using V = __m128i;
  static constexpr int L = 4;

  static V zero() { return _mm_setzero_si128(); }
  static V set1(int32_t v) { return _mm_set1_epi32(v); }
  static V load(const float* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static V load(const int32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static void store(float* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
  static V add(V a, V b) { return _mm_add_epi32(a, b); }
  // float(sum - a * b) * s * t
  static F32x4::V real(V sum, V a, V b, F32x4::V s, F32x4::V t) {
    return _mm_mul_ps(_mm_mul_ps(_mm_cvtepi32_ps(_mm_sub_epi32(sum, _mm_mullo_epi32(a, b))), s), t);
  }

  // x of 16 tokens, one column; `interleave` makes fours of columns, token by token.
  using P = __m128i;
  static P load_bytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static void interleave(P a, P b, P c, P d, P (&out)[4]) {
    const P ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d);
    const P ab_high = _mm_unpackhi_epi8(a, b), cd_high = _mm_unpackhi_epi8(c, d);
    out[0] = _mm_unpacklo_epi16(ab, cd);
    out[1] = _mm_unpackhi_epi16(ab, cd);
    out[2] = _mm_unpacklo_epi16(ab_high, cd_high);
    out[3] = _mm_unpackhi_epi16(ab_high, cd_high);
  }

#if defined(__AVX512VNNI__)
  using W = P;
  static W weights(P bytes) { return bytes; }
  static V dot(V acc, P x, W w) { return _mm_dpbusd_epi32(acc, x, w); }
#else
  struct W {
    P even, odd;
  };
  static W weights(P bytes) { return {_mm_srai_epi16(_mm_slli_epi16(bytes, 8), 8), _mm_srai_epi16(bytes, 8)}; }
  static V dot(V acc, P x, W w) {
    const P even = _mm_madd_epi16(_mm_and_si128(x, _mm_set1_epi16(255)), w.even);
    return add(add(acc, even), _mm_madd_epi16(_mm_srli_epi16(x, 8), w.odd));
  }
#endif
  static W set1_quad(const int8_t* p) {
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return weights(set1(quad));
  }
};

struct I32x8 : Quads<I32x8> {
  using Floats = F32x8;
  using V = __m256i;
  static constexpr int L = 8;

  static V zero() { return _mm256_setzero_si256(); }
  static V set1(int32_t v) { return _mm256_set1_epi32(v); }
  static V load(const float* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static V load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static V bits(F32x8::V v) { return _mm256_castps_si256(v); }
  static void store(float* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static V add(V a, V b) { return _mm256_add_epi32(a, b); }
  static F32x8::V real(V sum, V a, V b, F32x8::V s, F32x8::V t) {
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_mullo_epi32(a, b))), s), t);
  }

  using P = __m256i;
  static P load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void interleave(P a, P b, P c, P d, P (&out)[4]) {
    const P ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
    const P ab_high = _mm256_unpackhi_epi8(a, b), cd_high = _mm256_unpackhi_epi8(c, d);
    out[0] = _mm256_unpacklo_epi16(ab, cd);
    out[1] = _mm256_unpackhi_epi16(ab, cd);
    out[2] = _mm256_unpacklo_epi16(ab_high, cd_high);
    out[3] = _mm256_unpackhi_epi16(ab_high, cd_high);
  }

#if defined(__AVX512VNNI__)
  using W = P;
  static W weights(P bytes) { return bytes; }
  static V dot(V acc, P x, W w) { return _mm256_dpbusd_epi32(acc, x, w); }
#else
  struct W {
    P even, odd;
  };
  static W weights(P bytes) { return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)}; }
  static V dot(V acc, P x, W w) {
    const P even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(255)), w.even);
    return add(add(acc, even), _mm256_madd_epi16(_mm256_srli_epi16(x, 8), w.odd));
  }
#endif
  static W set1_quad(const int8_t* p) {
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return weights(set1(quad));
  }

  // Eight values to bytes: rounded to nearest, `zero` added, limited to 0 to 255.
  static void store_bytes(uint8_t* p, F32x8::V v, int32_t zero) {
    const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(v), set1(zero));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
};

// Calls f(Shape) for the tile that holds `tokens`, with vectors of at most 256 bits.
template <TileMode kMode, class F>
SI_INLINE void with_narrow_byte_tile(int64_t tokens, F f) {
  if constexpr (kMode == TileMode::kBytes) {
    if (tokens <= 16) return f(Shape<I32x4, 1, kMode>{});
    f(Shape<I32x8, 1, kMode>{});
  } else {
    if (tokens <= 4) return f(Shape<I32x4, 1, kMode>{});
    if (tokens <= 8) return f(Shape<I32x8, 1, kMode>{});
    f(Shape<I32x8, 2, kMode>{});
  }
}

// Bytes of 16 rows, 16 columns from `c` on -> out[column][row].
SI_INLINE void turn_bytes(const uint8_t* const* rows, int64_t c, uint8_t* out, int64_t stride) {
  __m128i v[16], w[16];
  SI_UNROLL
  for (int i = 0; i < 16; ++i) v[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + c));
  // Each round interleaves row i with row i + 8: after four of them position 4 bits of row and column are exchanged.
  SI_UNROLL
  for (int round = 0; round < 4; ++round) {
    SI_UNROLL
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = _mm_unpacklo_epi8(v[i], v[i + 8]);
      w[2 * i + 1] = _mm_unpackhi_epi8(v[i], v[i + 8]);
    }
    SI_UNROLL
    for (int i = 0; i < 16; ++i) v[i] = w[i];
  }
  SI_UNROLL
  for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * stride), v[i]);
}

// sell: 16 bytes of x, the same in every part of the register that vpshufb looks up in.
template <int kWindow>
struct ByteWindow16 {
  static_assert(kWindow == 16);
  __m256i part;
  using Index = __m256i;
  void load(const uint8_t* x) {
    part = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static Index index(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  __m256i look_up(Index at) const { return _mm256_shuffle_epi8(part, at); }
};

}  // namespace
}  // namespace sparseinfer
