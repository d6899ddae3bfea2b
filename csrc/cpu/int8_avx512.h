// Products of bytes in vectors of 512 bits (see int8_x86.h).
#pragma once

#include "cpu/int8_x86.h"

namespace sparseinfer {
namespace {

template <class F32x16>
struct I32x16Of : Quads<I32x16Of<F32x16>> {
  using Floats = F32x16;
  using V = __m512i;
  static constexpr int L = 16;

  static V zero() { return _mm512_setzero_si512(); }
  static V set1(int32_t v) { return _mm512_set1_epi32(v); }
  static V load(const float* p) { return _mm512_loadu_si512(p); }
  static V load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static V bits(__m512 v) { return _mm512_castps_si512(v); }
  static void store(float* p, V v) { _mm512_storeu_si512(p, v); }
  static V add(V a, V b) { return _mm512_add_epi32(a, b); }
  static __m512 real(V sum, V a, V b, __m512 s, __m512 t) {
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_mullo_epi32(a, b))), s), t);
  }

  using P = __m512i;
  static P load_bytes(const void* p) { return _mm512_loadu_si512(p); }
  static void interleave(P a, P b, P c, P d, P (&out)[4]) {
    const P ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
    const P ab_high = _mm512_unpackhi_epi8(a, b), cd_high = _mm512_unpackhi_epi8(c, d);
    out[0] = _mm512_unpacklo_epi16(ab, cd);
    out[1] = _mm512_unpackhi_epi16(ab, cd);
    out[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
    out[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
  }

#if defined(__AVX512VNNI__)
  using W = P;
  static W weights(P bytes) { return bytes; }
  static V dot(V acc, P x, W w) { return _mm512_dpbusd_epi32(acc, x, w); }
#else
  struct W {
    P even, odd;
  };
  static W weights(P bytes) { return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)}; }
  static V dot(V acc, P x, W w) {
    const P even = _mm512_madd_epi16(_mm512_and_si512(x, _mm512_set1_epi16(255)), w.even);
    return add(add(acc, even), _mm512_madd_epi16(_mm512_srli_epi16(x, 8), w.odd));
  }
#endif
  static W set1_quad(const int8_t* p) {
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return weights(set1(quad));
  }

  static void store_bytes(uint8_t* p, __m512 v, int32_t zero) {
    const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(v), set1(zero));
    const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512()));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
};

#if defined(__AVX512VBMI__)
constexpr int kByteWindow512 = 64;
#else
constexpr int kByteWindow512 = 16;
#endif

// sell: 64 bytes of x looked up by one permute, or 16.
template <int kWindow>
struct ByteWindow512 {
  static_assert(kWindow == kByteWindow512);
  __m512i part;
  using Index = __m512i;
  static Index index(const uint8_t* p) { return _mm512_loadu_si512(p); }
#if defined(__AVX512VBMI__)
  void load(const uint8_t* x) { part = _mm512_loadu_si512(x); }
  __m512i look_up(Index at) const { return _mm512_permutexvar_epi8(at, part); }
#else
  void load(const uint8_t* x) { part = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))); }
  __m512i look_up(Index at) const { return _mm512_shuffle_epi8(part, at); }
#endif
};

}  // namespace
}  // namespace sparseinfer
