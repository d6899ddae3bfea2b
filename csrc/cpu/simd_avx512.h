// Vectors for AVX-512 F/BW/DQ/VL: 16 floats.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/unroll.h"

namespace sparseinfer {
namespace {

struct Simd {
  using V = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kGroupTile = 4;  // vectors of tokens per tile: 4 rows x 4 accumulators + 4 of x, of 32 registers
  static constexpr int kListTile = 4;

  static V zero() { return _mm512_setzero_ps(); }
  static V set1(float v) { return _mm512_set1_ps(v); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static V load_partial(const float* p, int count) { return _mm512_maskz_loadu_ps(first(count), p); }
  static void store_partial(float* p, V v, int count) { _mm512_mask_storeu_ps(p, first(count), v); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  // A NaN in b is returned.
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V abs(V a) { return _mm512_abs_ps(a); }
  static V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V select_negative(V sign, V if_negative, V otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(sign, zero(), _CMP_LT_OQ), otherwise, if_negative);
  }
  // a * 2^e for integral e
  static V scale(V a, V e) { return _mm512_scalef_ps(a, e); }
  static float sum(V a) { return _mm512_reduce_add_ps(a); }
  // Four weights in every 128-bit lane: one load for four broadcasts, which are in-lane permutes off the load ports.
  using Quad = __m512;
  static Quad load_quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  template <int I>
  static V lane(Quad q) {
    return _mm512_permute_ps(q, I * 0x55);
  }
  static V gather(const float* base, const uint32_t* index) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(index), base, 4);
  }

  static V fma_masked(uint32_t mask, V a, V b, V c) {
    return _mm512_mask3_fmadd_ps(a, b, c, static_cast<__mmask16>(mask));
  }

  // Looks up 16 of 64 consecutive values by byte index, in registers.
  struct Index {
    __m512i at;
    __mmask16 upper;
  };
  static Index load_index(const uint8_t* p) {
    const __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {at, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32))};
  }
  struct Chunk {
    V part[4];
    void load(const float* p, int64_t count) {
      SI_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t left = count - i * 16;
        part[i] = left >= 16 ? Simd::load(p + i * 16)
                  : left > 0 ? load_partial(p + i * 16, static_cast<int>(left))
                             : zero();
      }
    }
    V look_up(Index i) const {
      return _mm512_mask_blend_ps(i.upper, _mm512_permutex2var_ps(part[0], i.at, part[1]),
                                  _mm512_permutex2var_ps(part[2], i.at, part[3]));
    }
  };

  // out[c] = {rows[0][c], ..., rows[15][c]} for 16 columns: 4x4 transposes inside 128-bit lanes, with the lanes
  // gathered by the loads.
  static void load_transposed(const float* const* rows, V* out) {
    SI_UNROLL
    for (int c = 0; c < 16; c += 4) {
      V r[4];
      SI_UNROLL
      for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + c));
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(rows[i + 4] + c), 1);
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(rows[i + 8] + c), 2);
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(rows[i + 12] + c), 3);
      }
      const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
      const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
      const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
      const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
      out[c] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
      out[c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
      out[c + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
      out[c + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
    }
  }

 private:
  static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
};

}  // namespace
}  // namespace sparseinfer
