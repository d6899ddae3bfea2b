// Products of bytes, one sum at a time (see int8_x86.h).
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/quads.h"
#include "cpu/shapes.h"
#include "cpu/unroll.h"

namespace sparseinfer {
namespace {

constexpr bool kByteDot = false;

template <class F32x1>
struct I32x1Of : Quads<I32x1Of<F32x1>> {
  using Floats = F32x1;
  using V = int32_t;
  static constexpr int L = 1;

  static V zero() { return 0; }
  static V set1(int32_t v) { return v; }
  static V load(const float* p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static V load(const int32_t* p) { return *p; }
  static V bits(float v) { return load(&v); }
  static void store(float* p, V v) { memcpy(p, &v, sizeof v); }
  static V add(V a, V b) { return static_cast<V>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
  static float real(V sum, V a, V b, float s, float t) {
    const uint32_t product = static_cast<uint32_t>(a) * static_cast<uint32_t>(b);
    return static_cast<float>(static_cast<V>(static_cast<uint32_t>(sum) - product)) * s * t;
  }

  // x of 4 tokens, one column.
  struct P {
    uint8_t bytes[4];
  };
  static P load_bytes(const void* p) {
    P v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void interleave(P a, P b, P c, P d, P (&out)[4]) {
    for (int i = 0; i < 4; ++i) out[i] = {{a.bytes[i], b.bytes[i], c.bytes[i], d.bytes[i]}};
  }
  using W = P;
  static W weights(P bytes) { return bytes; }
  static W set1_quad(const int8_t* p) { return load_bytes(p); }
  static V dot(V acc, P x, W w) {
    for (int i = 0; i < 4; ++i) acc = add(acc, x.bytes[i] * static_cast<int8_t>(w.bytes[i]));
    return acc;
  }

  static void store_bytes(uint8_t* p, float v, int32_t zero) {
    const int32_t whole = static_cast<int32_t>(nearbyintf(v)) + zero;
    *p = static_cast<uint8_t>(whole < 0 ? 0 : whole > 255 ? 255 : whole);
  }
};

}  // namespace
}  // namespace sparseinfer
