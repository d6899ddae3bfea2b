// Vector types of the level neon: Advanced SIMD of the aarch64 baseline, vectors of 4 floats.
#pragma once

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "cpu/int8_neon.h"
#include "cpu/shapes.h"
#include "cpu/unroll.h"
#include "sparseinfer/halves.h"

namespace sparseinfer {
namespace {

// bitmap: for every mask of 4 lanes of kBytes, the stored byte that each byte comes from. Lanes that are not stored
// point outside of what is looked up, which gives zero.
template <int kBytes>
struct Expansion {
  alignas(16) uint8_t from[16][4 * kBytes];
  constexpr Expansion() : from() {
    for (int mask = 0; mask < 16; ++mask) {
      int stored = 0;
      for (int byte = 0; byte < 4 * kBytes; ++byte) {
        const bool kept = mask >> (byte / kBytes) & 1;
        from[mask][byte] = static_cast<uint8_t>(kept ? stored++ : 255);
      }
    }
  }
};
constexpr Expansion<4> kExpandFloats;
constexpr Expansion<2> kExpandHalves;

struct F32x4 {
  using V = float32x4_t;
  static constexpr int L = 4;

  static V zero() { return vdupq_n_f32(0.0f); }
  static V set1(float v) { return vdupq_n_f32(v); }
  static V load(const float* p) { return vld1q_f32(p); }
  static V load(const BF16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
  }
  static V load(const F16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
  }
  static V load(const Dword* p) { return vreinterpretq_f32_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p))); }
  static V load(const int8_t* p) {
    int8_t bytes[8] = {};
    memcpy(bytes, p, L);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes)))));
  }
  static void store(float* p, V v) { vst1q_f32(p, v); }
  static void store(BF16* p, V v) { vst1_u16(reinterpret_cast<uint16_t*>(p), narrow_bf16(v)); }
  static void store(F16* p, V v) { vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v))); }
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
    if (count == L) return load(p);
    T values[L] = {};
    memcpy(values, p, static_cast<size_t>(count) * sizeof(T));
    return load(values);
  }
  // Lanes [begin, end) of a vector, which alone are read; the others are as in `otherwise`.
  struct Lanes {
    int begin, end;
  };
  static Lanes lanes_between(int begin, int end) { return {begin, end}; }
  static V load(const float* p, Lanes lanes, V otherwise) {
    if (lanes.begin == 0 && lanes.end == L) return load(p);
    float values[L];
    store(values, otherwise);
    for (int i = lanes.begin; i < lanes.end; ++i) values[i] = p[i];
    return load(values);
  }
  template <class T>
  static void store_partial(T* p, V v, int count) {
    if (count == L) return store(p, v);
    T values[L];
    store(values, v);
    memcpy(p, values, static_cast<size_t>(count) * sizeof(T));
  }
  static V add(V a, V b) { return vaddq_f32(a, b); }
  static V sub(V a, V b) { return vsubq_f32(a, b); }
  static V mul(V a, V b) { return vmulq_f32(a, b); }
  static V div(V a, V b) { return vdivq_f32(a, b); }
  static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  // A NaN in a or b is returned.
  static V min(V a, V b) { return vminq_f32(a, b); }
  static V max(V a, V b) { return vmaxq_f32(a, b); }
  static V max_or_nan(V a, V b) { return max(a, b); }
  static V abs(V a) { return vabsq_f32(a); }
  static V round(V a) { return vrndnq_f32(a); }
  static V select_negative(V sign, V if_negative, V otherwise) {
    return vbslq_f32(vcltzq_f32(sign), if_negative, otherwise);
  }
  // Elements 0, 2, ... of a and then b.
  static V evens(V a, V b) { return vuzp1q_f32(a, b); }
  // a * 2^e for integral e in [-252, 254]: in two steps, because 2^e alone may not be a normal float.
  static V scale(V a, V e) {
    const int32x4_t whole = vcvtq_s32_f32(e);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    return mul(mul(a, pow2(half)), pow2(vsubq_s32(whole, half)));
  }
  static float sum(V a) { return vaddvq_f32(a); }
  static float largest(V a) { return vmaxvq_f32(a); }

  // Four weights: one load for four multiplies, each of which takes its weight from a lane.
  using Quad = V;
  template <class T>
  static Quad load_quad(const T* p) {
    return load(p);
  }
  template <int I>
  static V lane(Quad q) {
    return vdupq_laneq_f32(q, I);
  }
  template <int I>
  static uint16x8_t lane_pair(Quad q) {
    return vreinterpretq_u16_f32(lane<I>(q));
  }
  static V gather(const float* base, const uint32_t* index) {
    V v = vld1q_dup_f32(base + index[0]);
    v = vld1q_lane_f32(base + index[1], v, 1);
    v = vld1q_lane_f32(base + index[2], v, 2);
    return vld1q_lane_f32(base + index[3], v, 3);
  }

  // 8 tokens of bf16 in one register. `interleave` pairs two columns of them token by token: the first 4 tokens, then
  // the last 4.
  using P = uint16x8_t;
  static P load_pairs(const uint16_t* p) { return vld1q_u16(p); }
  static P set1_pair(const uint16_t* p) {
    uint32_t pair;
    memcpy(&pair, p, sizeof pair);
    return vreinterpretq_u16_u32(vdupq_n_u32(pair));
  }
  static void interleave(P a, P b, P (&out)[2]) {
    out[0] = vzip1q_u16(a, b);
    out[1] = vzip2q_u16(a, b);
  }
  static V dot(V acc, P x, P w) { return fma(high(x), high(w), fma(low(x), low(w), acc)); }

  // bitmap: values of 4 columns, of which those in the mask are stored, one after another.
  using Mask = uint64_t;
  static Mask mask(const uint64_t* word, int part) { return *word >> (4 * part) & 0xf; }
  static V expand(V stored, Mask mask) {
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(stored), vld1q_u8(kExpandFloats.from[mask])));
  }
  static V fma_masked(Mask mask, V a, const float* b, V c) {
    const uint32x4_t bits = {1, 2, 4, 8};
    const uint32x4_t kept = vtstq_u32(vdupq_n_u32(static_cast<uint32_t>(mask)), bits);
    return fma(a, vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(load(b)), kept)), c);
  }
  // The same for 8 columns of bf16, and the x values that meet them.
  using PairMask = uint64_t;
  static PairMask pair_mask(const uint64_t* word, int part) { return *word >> (8 * part) & 0xff; }
  static P expand_pairs(const uint16_t* stored, PairMask mask) {
    return vcombine_u16(expand_halves(stored, mask & 0xf),
                        expand_halves(stored + __builtin_popcountll(mask & 0xf), mask >> 4));
  }
  static P load_pairs_masked(const uint16_t* p, PairMask mask) {
    const uint16x8_t bits = {1, 2, 4, 8, 16, 32, 64, 128};
    return vandq_u16(load_pairs(p), vtstq_u16(vdupq_n_u16(static_cast<uint16_t>(mask)), bits));
  }
  // Positions of the set bits of a mask, counted from `base`, and how many there are; `out` has room for 64.
  static int positions(uint64_t mask, int base, uint16_t* out) {
    int count = 0;
    for (; mask != 0; mask &= mask - 1) out[count++] = static_cast<uint16_t>(base + __builtin_ctzll(mask));
    return count;
  }

  // 4 columns from `c` on of 4 rows of x -> out[column][token].
  template <int kTokens, class T>
  static void to_columns(const T* const* rows, int64_t c, float* out, int64_t stride) {
    static_assert(kTokens == 4);
    V v[4];
    SI_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = load(rows[i] + c);
    transpose(v);
    SI_UNROLL
    for (int i = 0; i < 4; ++i) store(out + i * stride, v[i]);
  }

  // The same for 4 tokens of bf16.
  static void halves_to_columns(const uint16_t* const* rows, int64_t c, uint16_t* out, int64_t stride) {
    uint16x4_t v[4];
    SI_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = vld1_u16(rows[i] + c);
    const uint32x2_t low01 = vreinterpret_u32_u16(vzip1_u16(v[0], v[1]));
    const uint32x2_t high01 = vreinterpret_u32_u16(vzip2_u16(v[0], v[1]));
    const uint32x2_t low23 = vreinterpret_u32_u16(vzip1_u16(v[2], v[3]));
    const uint32x2_t high23 = vreinterpret_u32_u16(vzip2_u16(v[2], v[3]));
    vst1_u16(out, vreinterpret_u16_u32(vzip1_u32(low01, low23)));
    vst1_u16(out + stride, vreinterpret_u16_u32(vzip2_u32(low01, low23)));
    vst1_u16(out + 2 * stride, vreinterpret_u16_u32(vzip1_u32(high01, high23)));
    vst1_u16(out + 3 * stride, vreinterpret_u16_u32(vzip2_u32(high01, high23)));
  }

  // sums[4 rows][tokens] -> one vector of 4 rows per token.
  template <int kTokens, int>
  static void to_rows(const float* sums, int64_t stride, V (&out)[kTokens]) {
    static_assert(kTokens == 4);
    SI_UNROLL
    for (int i = 0; i < 4; ++i) out[i] = load(sums + i * stride);
    transpose(out);
  }
  // The first and the second column of each pair, widened.
  static V low(P p) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(p), 16)); }
  static V high(P p) { return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(p), vdupq_n_u32(0xffff0000))); }

 private:
  // rows[i][c] -> rows[c][i]
  static void transpose(V (&rows)[4]) {
    const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(rows[0], rows[1]));
    const float64x2_t odd01 = vreinterpretq_f64_f32(vtrn2q_f32(rows[0], rows[1]));
    const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(rows[2], rows[3]));
    const float64x2_t odd23 = vreinterpretq_f64_f32(vtrn2q_f32(rows[2], rows[3]));
    rows[0] = vreinterpretq_f32_f64(vtrn1q_f64(even01, even23));
    rows[1] = vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23));
    rows[2] = vreinterpretq_f32_f64(vtrn2q_f64(even01, even23));
    rows[3] = vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23));
  }
  static uint16x4_t expand_halves(const uint16_t* stored, uint64_t mask) {
    return vreinterpret_u16_u8(vtbl1_u8(vreinterpret_u8_u16(vld1_u16(stored)), vld1_u8(kExpandHalves.from[mask])));
  }
  static V pow2(int32x4_t e) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23)); }
  // To nearest, ties to even; NaN becomes a quiet NaN.
  static uint16x4_t narrow_bf16(V v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16);
  }
};

struct Level {
  using Row = F32x4;
  using Transposer = F32x4;
  using Ints = I32x4Of<F32x4>;
  template <int>
  using Finisher = Ints;  // vectors of rows, in which the epilogue writes y
  static constexpr int kRegisters = 32;
  static constexpr bool kPairDot = false;  // no instruction multiplies pairs of bf16
  static constexpr int kSellTokens = 3;    // as many windows and sums as the registers hold

  // sell: 64 bytes of x in four registers, the last value of them zero, looked up by byte index.
  static constexpr int kWindows[2] = {16, 0}, kPairWindow = 32;
  static constexpr int kSteps[3] = {1, 2, 4};
  template <int kWindow>
  struct Window {
    static_assert(kWindow == 16);
    uint8x16x4_t part;
    using Index = uint8x16_t;
    void load(const float* x) {
      SI_UNROLL
      for (int i = 0; i < 3; ++i) part.val[i] = vreinterpretq_u8_f32(vld1q_f32(x + 4 * i));
      part.val[3] = vreinterpretq_u8_f32(vsetq_lane_f32(0.0f, vld1q_f32(x + 12), 3));
    }
    // From the position of a value to those of its bytes.
    static Index index(const uint8_t* p) {
      const uint8x16_t value = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
      const uint8x16_t byte = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
      uint32_t at;
      memcpy(&at, p, sizeof at);
      return vorrq_u8(byte, vshlq_n_u8(vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(at)), value), 2));
    }
    Row::V look_up(Index at) const { return vreinterpretq_f32_u8(vqtbl4q_u8(part, at)); }
  };
  template <int kWindow>
  struct PairWindow {
    static_assert(kWindow == 32);
    uint8x16x4_t part;
    using Index = uint8x16_t;
    void load(const uint16_t* x) {
      SI_UNROLL
      for (int i = 0; i < 3; ++i) part.val[i] = vreinterpretq_u8_u16(vld1q_u16(x + 8 * i));
      part.val[3] = vreinterpretq_u8_u16(vsetq_lane_u16(0, vld1q_u16(x + 24), 7));
    }
    static Index index(const uint8_t* p) {
      const uint8x8_t at = vld1_u8(p);
      const uint8x16_t byte = {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1};
      return vorrq_u8(byte, vshlq_n_u8(vcombine_u8(vzip1_u8(at, at), vzip2_u8(at, at)), 1));
    }
    Row::P look_up(Index at) const { return vreinterpretq_u16_u8(vqtbl4q_u8(part, at)); }
  };

  // The same for bytes, where padding needs no zero.
  static constexpr int kByteWindow = 64;
  static constexpr int kByteSteps[3] = {1, 2, 4};
  template <int kWindow>
  struct ByteWindow {
    static_assert(kWindow == 64);
    uint8x16x4_t part;
    using Index = uint8x16_t;
    void load(const uint8_t* x) {
      SI_UNROLL
      for (int i = 0; i < 4; ++i) part.val[i] = vld1q_u8(x + 16 * i);
    }
    static Index index(const uint8_t* p) { return vld1q_u8(p); }
    Ints::P look_up(Index at) const { return vqtbl4q_u8(part, at); }
  };

  // The same from memory; position `last` counts as zero.
  struct AnyWindow {
    const float* x;
    int last;
    Row::V look_up(const uint8_t* offsets) const {
      float values[4];
      for (int i = 0; i < 4; ++i) values[i] = offsets[i] == last ? 0.0f : x[offsets[i]];
      return Row::load(values);
    }
  };
  struct AnyPairWindow {
    const uint16_t* x;
    int last;
    Row::P look_up(const uint8_t* offsets) const {
      uint16_t values[8];
      for (int i = 0; i < 8; ++i) values[i] = offsets[i] == last ? uint16_t{0} : x[offsets[i]];
      return Row::load_pairs(values);
    }
  };

  // Calls f(Shape) for the tile that holds `tokens`: 4 rows of 4 vectors of sums, or one row of 16.
  template <TileMode kMode, int kRows, class F>
  static SI_INLINE void with_tile(int64_t tokens, F f) {
    constexpr int kWide = kMode == TileMode::kPairs ? 2 : 1;  // vectors of sums per load
    if constexpr (kMode != TileMode::kPairs) {
      if (tokens <= 4) return f(Shape<F32x4, 1, kMode>{});
    }
    if (tokens <= 8) return f(Shape<F32x4, 2 / kWide, kMode>{});
    if constexpr (kRows == 1) {
      if (tokens <= 16) return f(Shape<F32x4, 4 / kWide, kMode>{});
      if (tokens <= 32) return f(Shape<F32x4, 8 / kWide, kMode>{});
      f(Shape<F32x4, 16 / kWide, kMode>{});
    } else {
      f(Shape<F32x4, 4 / kWide, kMode>{});
    }
  }
  template <TileMode kMode, int kRows>
  static constexpr int kTileTokens = kRows == 1 ? 64 : 16;

  // The same for tiles of bytes.
  template <TileMode kMode, class F>
  static SI_INLINE void with_byte_tile(int64_t tokens, F f) {
    if constexpr (kMode == TileMode::kBytes) {
      f(Shape<Ints, 1, kMode>{});
    } else {
      if (tokens <= 4) return f(Shape<Ints, 1, kMode>{});
      if (tokens <= 8) return f(Shape<Ints, 2, kMode>{});
      f(Shape<Ints, 4, kMode>{});
    }
  }
  template <TileMode kMode>
  static constexpr int kByteTileTokens = 16;
};

}  // namespace
}  // namespace sparseinfer
