// Vector types of the level scalar, one float at a time, for every CPU. Read this file first: the others follow it.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define SI_LEVEL_SCALAR
#include "cpu/int8_scalar.h"
#include "cpu/shapes.h"
#include "cpu/unroll.h"
#include "sparseinfer/halves.h"

namespace sparseinfer {
namespace {

struct F32x1 {
  using V = float;
  static constexpr int L = 1;

  static V zero() { return 0.0f; }
  static V set1(float v) { return v; }
  template <class T>
  static V load(const T* p) {
    return widen(*p);
  }
  template <class T>
  static void store(T* p, V v) {
    narrow(v, p);
  }
  template <class T>
  static V load_partial(const T* p, int count) {
    return count > 0 ? load(p) : 0.0f;
  }
  // Lanes [begin, end) of a vector, which alone are read; the others are as in `otherwise`.
  using Lanes = bool;
  static Lanes lanes_between(int begin, int end) { return begin < end; }
  static V load(const float* p, Lanes lanes, V otherwise) { return lanes ? *p : otherwise; }
  template <class T>
  static void store_partial(T* p, V v, int count) {
    if (count > 0) store(p, v);
  }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  // A NaN in b is returned.
  static V min(V a, V b) { return a < b ? a : b; }
  static V max(V a, V b) { return a > b ? a : b; }
  // A NaN in either is returned.
  static V max_or_nan(V a, V b) { return a != a ? a : max(a, b); }
  static V abs(V a) { return fabsf(a); }
  static V round(V a) { return nearbyintf(a); }
  static V select_negative(V sign, V if_negative, V otherwise) { return sign < 0.0f ? if_negative : otherwise; }
  static V evens(V a, V) { return a; }
  static V scale(V a, V e) { return e == e ? ldexpf(a, static_cast<int>(e)) : e; }  // no integer is NaN
  static float sum(V a) { return a; }
  static float largest(V a) { return a; }  // if none is NaN

  // Four weights, or pairs of them.
  using Quad = const float*;
  template <class T>
  static const T* load_quad(const T* p) {
    return p;
  }
  template <int I, class T>
  static V lane(const T* quad) {
    return widen(quad[I]);
  }
  template <int I>
  static Dword lane_pair(Quad q) {
    return set1_pair(reinterpret_cast<const uint16_t*>(q) + 2 * I);
  }
  static V gather(const float* base, const uint32_t* index) { return base[*index]; }

  // 2 tokens of bf16. `interleave` pairs two columns of them token by token.
  using P = Dword;
  static P load_pairs(const uint16_t* p) { return {{p[0], p[1]}}; }
  static P set1_pair(const uint16_t* p) { return load_pairs(p); }
  static void interleave(P a, P b, P (&out)[2]) {
    out[0] = {{a.columns[0], b.columns[0]}};
    out[1] = {{a.columns[1], b.columns[1]}};
  }
  static V dot(V acc, P x, P w) {
    for (int i = 0; i < 2; ++i) acc += widen(BF16{x.columns[i]}) * widen(BF16{w.columns[i]});
    return acc;
  }

  // The first and the second column of a pair, widened.
  static V low(P p) { return widen(BF16{p.columns[0]}); }
  static V high(P p) { return widen(BF16{p.columns[1]}); }

  // bitmap: values of one column (two of bf16), of which those in the mask are stored, one after another.
  using Mask = uint64_t;
  using PairMask = uint64_t;
  static Mask mask(const uint64_t* word, int part) { return *word >> (1 * part) & 0x1; }
  static PairMask pair_mask(const uint64_t* word, int part) { return *word >> (2 * part) & 0x3; }
  static V expand(V stored, uint64_t mask) { return mask & 1 ? stored : 0.0f; }
  static V fma_masked(uint64_t mask, V a, const float* b, V c) { return mask & 1 ? a * *b + c : c; }
  static P expand_pairs(const uint16_t* stored, uint64_t mask) {
    return {{static_cast<uint16_t>(mask & 1 ? stored[0] : 0), static_cast<uint16_t>(mask & 2 ? stored[mask & 1] : 0)}};
  }
  static P load_pairs_masked(const uint16_t* p, uint64_t mask) {
    return {{static_cast<uint16_t>(mask & 1 ? p[0] : 0), static_cast<uint16_t>(mask & 2 ? p[1] : 0)}};
  }

  // Positions of the set bits of a mask, counted from `base`, and how many there are; `out` has room for 64.
  static int positions(uint64_t mask, int base, uint16_t* out) {
    int count = 0;
    for (; mask != 0; mask &= mask - 1) out[count++] = static_cast<uint16_t>(base + __builtin_ctzll(mask));
    return count;
  }

  // Transposes of one token.
  template <int kTokens, class T>
  static void to_columns(const T* const* rows, int64_t c, float* out, int64_t) {
    *out = widen(rows[0][c]);
  }
  static void halves_to_columns(const uint16_t* const* rows, int64_t c, uint16_t* out, int64_t) { *out = rows[0][c]; }
  template <int kTokens, int kHalf>
  static void to_rows(const float* sums, int64_t, V (&out)[kTokens]) {
    out[0] = *sums;
  }
};

struct Level {
  using Row = F32x1;
  using Transposer = F32x1;
  using Ints = I32x1Of<F32x1>;
  template <int>
  using Finisher = Ints;  // vectors of rows, in which the epilogue writes y
  static constexpr int kRegisters = 16;
  static constexpr bool kPairDot = false;  // no instruction multiplies pairs of bf16
  static constexpr int kSellTokens = 1;

  // sell: consecutive values of x looked up by byte index; position `last` counts as zero. No fast paths.
  static constexpr int kWindows[2] = {0, 0}, kPairWindow = 0;
  static constexpr int kSteps[3] = {0, 0, 0};
  template <int>
  struct Window;
  template <int>
  struct PairWindow;
  static constexpr int kByteWindow = 0, kByteSteps[3] = {0, 0, 0};
  template <int>
  struct ByteWindow;
  struct AnyWindow {
    const float* x;
    int last;
    float look_up(const uint8_t* offsets) const { return *offsets == last ? 0.0f : x[*offsets]; }
  };
  struct AnyPairWindow {
    const uint16_t* x;
    int last;
    Dword look_up(const uint8_t* offsets) const { return {{half(offsets[0]), half(offsets[1])}}; }

   private:
    uint16_t half(uint8_t at) const { return at == last ? uint16_t{0} : x[at]; }
  };

  template <TileMode kMode, int kRows, class F>
  static SI_INLINE void with_tile(int64_t tokens, F f) {
    if constexpr (kMode == TileMode::kPairs) {
      f(Shape<F32x1, 1, kMode>{});
    } else {
      if (tokens <= 1) return f(Shape<F32x1, 1, kMode>{});
      f(Shape<F32x1, 2, kMode>{});
    }
  }
  template <TileMode kMode, int kRows>
  static constexpr int kTileTokens = 2;

  // The same for tiles of bytes.
  template <TileMode kMode, class F>
  static SI_INLINE void with_byte_tile(int64_t tokens, F f) {
    if (kMode == TileMode::kBytes || tokens <= 1) return f(Shape<Ints, 1, kMode>{});
    f(Shape<Ints, kMode == TileMode::kBytes ? 1 : 2, kMode>{});
  }
  template <TileMode kMode>
  static constexpr int kByteTileTokens = kMode == TileMode::kBytes ? 4 : 2;
};

}  // namespace
}  // namespace sparseinfer
