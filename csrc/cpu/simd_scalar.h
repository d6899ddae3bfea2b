// One float at a time: the level that every CPU has, and the one to read first.
#pragma once

#include <math.h>
#include <stdint.h>

#include "cpu/unroll.h"

namespace sparseinfer {
namespace {

struct Simd {
  using V = float;
  static constexpr int kLanes = 1;
  static constexpr int kGroupTile = 2;
  static constexpr int kListTile = 4;

  static V zero() { return 0.0f; }
  static V set1(float v) { return v; }
  static V load(const float* p) { return *p; }
  static void store(float* p, V v) { *p = v; }
  static V load_partial(const float* p, int count) { return count > 0 ? *p : 0.0f; }
  static void store_partial(float* p, V v, int count) {
    if (count > 0) *p = v;
  }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  // A NaN in b is returned.
  static V min(V a, V b) { return a < b ? a : b; }
  static V max(V a, V b) { return a > b ? a : b; }
  static V abs(V a) { return fabsf(a); }
  static V round(V a) { return nearbyintf(a); }
  static V select_negative(V sign, V if_negative, V otherwise) { return sign < 0.0f ? if_negative : otherwise; }
  static V scale(V a, V e) { return ldexpf(a, static_cast<int>(e)); }
  static float sum(V a) { return a; }
  using Quad = const float*;
  static Quad load_quad(const float* p) { return p; }
  template <int I>
  static V lane(Quad q) {
    return q[I];
  }
  static V gather(const float* base, const uint32_t* index) { return base[*index]; }
  static V fma_masked(uint32_t mask, V a, V b, V c) { return mask & 1 ? fma(a, b, c) : c; }
  using Index = uint8_t;
  static Index load_index(const uint8_t* p) { return *p; }
  struct Chunk {
    const float* values;
    void load(const float* p, int64_t) { values = p; }
    V look_up(Index i) const { return values[i]; }
  };
  static void load_transposed(const float* const* rows, V* out) { out[0] = rows[0][0]; }
};

}  // namespace
}  // namespace sparseinfer
