// Vectors for AVX2 with FMA and F16C: 8 floats.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/unroll.h"

namespace sparseinfer {
namespace {

struct Simd {
  using V = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kGroupTile = 2;  // vectors of tokens per tile: 4 rows x 2 accumulators + 2 of x, of 16 registers
  static constexpr int kListTile = 8;

  static V zero() { return _mm256_setzero_ps(); }
  static V set1(float v) { return _mm256_set1_ps(v); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static V load_partial(const float* p, int count) { return _mm256_maskload_ps(p, first(count)); }
  static void store_partial(float* p, V v, int count) { _mm256_maskstore_ps(p, first(count), v); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  // A NaN in b is returned.
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V select_negative(V sign, V if_negative, V otherwise) {
    return _mm256_blendv_ps(otherwise, if_negative, _mm256_cmp_ps(sign, zero(), _CMP_LT_OQ));
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
  // Four weights in every 128-bit lane: one load for four broadcasts, which are in-lane permutes off the load ports.
  using Quad = __m256;
  static Quad load_quad(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
  template <int I>
  static V lane(Quad q) {
    return _mm256_permute_ps(q, I * 0x55);
  }
  static V gather(const float* base, const uint32_t* index) {
    return _mm256_i32gather_ps(base, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
  }

  static V fma_masked(uint32_t mask, V a, V b, V c) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bits), bits);
    return _mm256_blendv_ps(c, fma(a, b, c), _mm256_castsi256_ps(kept));
  }

  // Looks up 8 of 64 consecutive values by byte index.
  using Index = __m256i;
  static Index load_index(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  struct Chunk {
    const float* values;
    void load(const float* p, int64_t) { values = p; }
    V look_up(Index i) const { return _mm256_i32gather_ps(values, i, 4); }
  };

  // out[c] = {rows[0][c], ..., rows[7][c]} for 8 columns.
  static void load_transposed(const float* const* rows, V* out) {
    SI_UNROLL
    for (int c = 0; c < 8; c += 4) {
      V r[4];
      SI_UNROLL
      for (int i = 0; i < 4; ++i) {
        r[i] =
            _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[i] + c)), _mm_loadu_ps(rows[i + 4] + c), 1);
      }
      const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(r[0], r[1]));
      const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(r[0], r[1]));
      const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(r[2], r[3]));
      const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(r[2], r[3]));
      out[c] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
      out[c + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
      out[c + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
      out[c + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
    }
  }

 private:
  static __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static V pow2(__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  }
};

}  // namespace
}  // namespace sparseinfer
