// Products of bytes for Advanced SIMD (see int8_x86.h). The instruction that multiplies four signed bytes, where the
// compiler has it, takes x less 128, and 128 times the weights is added. Otherwise bytes are widened to 16 bits.
#pragma once

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "cpu/quads.h"
#include "cpu/shapes.h"
#include "cpu/unroll.h"

namespace sparseinfer {
namespace {

#if defined(__ARM_FEATURE_DOTPROD)
constexpr bool kByteDot = true;
#else
constexpr bool kByteDot = false;
#endif

template <class F32x4>
struct I32x4Of : Quads<I32x4Of<F32x4>> {
  using Floats = F32x4;
  using V = int32x4_t;
  static constexpr int L = 4;

  static V zero() { return vdupq_n_s32(0); }
  static V set1(int32_t v) { return vdupq_n_s32(v); }
  static V load(const float* p) { return vreinterpretq_s32_f32(vld1q_f32(p)); }
  static V load(const int32_t* p) { return vld1q_s32(p); }
  static V bits(float32x4_t v) { return vreinterpretq_s32_f32(v); }
  static void store(float* p, V v) { vst1q_f32(p, vreinterpretq_f32_s32(v)); }
  static V add(V a, V b) { return vaddq_s32(a, b); }
  static float32x4_t real(V sum, V a, V b, float32x4_t s, float32x4_t t) {
    return vmulq_f32(vmulq_f32(vcvtq_f32_s32(vsubq_s32(sum, vmulq_s32(a, b))), s), t);
  }

  // x of 16 tokens, one column.
  using P = uint8x16_t;
  static P load_bytes(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
  static void interleave(P a, P b, P c, P d, P (&out)[4]) {
    const uint16x8_t ab = vreinterpretq_u16_u8(vzip1q_u8(a, b)), cd = vreinterpretq_u16_u8(vzip1q_u8(c, d));
    const uint16x8_t ab_high = vreinterpretq_u16_u8(vzip2q_u8(a, b)), cd_high = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    out[0] = vreinterpretq_u8_u16(vzip1q_u16(ab, cd));
    out[1] = vreinterpretq_u8_u16(vzip2q_u16(ab, cd));
    out[2] = vreinterpretq_u8_u16(vzip1q_u16(ab_high, cd_high));
    out[3] = vreinterpretq_u8_u16(vzip2q_u16(ab_high, cd_high));
  }

#if defined(__ARM_FEATURE_DOTPROD)
  struct W {
    int8x16_t bytes;
    V sums;  // 128 times those of each four
  };
  static W weights(P bytes) {
    const int8x16_t w = vreinterpretq_s8_u8(bytes);
    return {w, vnegq_s32(vdotq_s32(zero(), vdupq_n_s8(-128), w))};
  }
  static V dot(V acc, P x, W w) {
    const int8x16_t less = vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(0x80)));
    return vdotq_s32(vaddq_s32(acc, w.sums), less, w.bytes);
  }
#else
  struct W {
    int16x8_t low, high;
  };
  static W weights(P bytes) {
    const int8x16_t w = vreinterpretq_s8_u8(bytes);
    return {vmovl_s8(vget_low_s8(w)), vmovl_high_s8(w)};
  }
  static V dot(V acc, P x, W w) {
    const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x)));
    const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(x));
    const V a = vpaddq_s32(vmull_s16(vget_low_s16(low), vget_low_s16(w.low)), vmull_high_s16(low, w.low));
    const V b = vpaddq_s32(vmull_s16(vget_low_s16(high), vget_low_s16(w.high)), vmull_high_s16(high, w.high));
    return vaddq_s32(acc, vpaddq_s32(a, b));
  }
#endif
  static W set1_quad(const int8_t* p) {
    uint32_t quad;
    memcpy(&quad, p, sizeof quad);
    return weights(vreinterpretq_u8_u32(vdupq_n_u32(quad)));
  }

  static void store_bytes(uint8_t* p, float32x4_t v, int32_t zero) {
    const int16x4_t words = vqmovn_s32(vaddq_s32(vcvtnq_s32_f32(v), vdupq_n_s32(zero)));
    const uint8x8_t bytes = vqmovun_s16(vcombine_s16(words, words));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    memcpy(p, &four, sizeof four);
  }
};

// Bytes of 16 rows, 16 columns from `c` on -> out[column][row].
SI_INLINE void turn_bytes(const uint8_t* const* rows, int64_t c, uint8_t* out, int64_t stride) {
  uint8x16_t v[16], w[16];
  SI_UNROLL
  for (int i = 0; i < 16; ++i) v[i] = vld1q_u8(rows[i] + c);
  SI_UNROLL
  for (int round = 0; round < 4; ++round) {
    SI_UNROLL
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = vzip1q_u8(v[i], v[i + 8]);
      w[2 * i + 1] = vzip2q_u8(v[i], v[i + 8]);
    }
    SI_UNROLL
    for (int i = 0; i < 16; ++i) v[i] = w[i];
  }
  SI_UNROLL
  for (int i = 0; i < 16; ++i) vst1q_u8(out + i * stride, v[i]);
}

}  // namespace
}  // namespace sparseinfer
