// The C++ types of the dtypes, and conversion of single values: for the ends of rows, and for levels without such
// instructions.
#pragma once

#include <stdint.h>
#include <string.h>

#include "sparseinfer/dtypes.h"

namespace sparseinfer {
namespace {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
// Two neighbouring columns of bf16, moved as one.
struct Dword {
  uint16_t columns[2];
};

static inline float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float widen(float v) { return v; }
static inline float widen(int8_t v) { return v; }
static inline float widen(Dword v) {
  float as_it_is;
  memcpy(&as_it_is, &v, sizeof as_it_is);
  return as_it_is;
}
static inline float widen(BF16 v) { return from_bits(static_cast<uint32_t>(v.bits) << 16); }
static inline float widen(F16 v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16, rest = v.bits & 0x7fffu;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinity and NaN
  if (rest >= 0x0400) return from_bits(sign | ((rest << 13) + 0x38000000));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // subnormal
  return from_bits(sign | to_bits(magnitude));
}

// To nearest, ties to even; NaN stays NaN.
static inline void narrow(float v, float* out) { *out = v; }
static inline void narrow(float v, BF16* out) {
  const uint32_t bits = to_bits(v);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  out->bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline void narrow(float v, F16* out) {
  const uint32_t bits = to_bits(v), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  uint32_t half;
  if (rest > 0x7f800000) {
    half = 0x7e00;
  } else if (rest >= 0x477ff000) {  // rounds to 65520 or more
    half = 0x7c00;
  } else if (rest >= 0x38800000) {
    half = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
  } else {
    // Subnormal: adding 0.5 leaves the half's bits at the end of the mantissa, rounded by the addition.
    half = to_bits(from_bits(rest) + 0.5f) - 0x3f000000;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

// The value that was widened to this float; `narrow` does not keep the payload of every NaN.
static inline void narrow_back(float v, float* out) { *out = v; }
static inline void narrow_back(float v, BF16* out) { out->bits = static_cast<uint16_t>(to_bits(v) >> 16); }
static inline void narrow_back(float v, F16* out) {
  const uint32_t bits = to_bits(v);
  if (v == v) return narrow(v, out);
  out->bits = static_cast<uint16_t>((bits >> 16 & 0x8000) | 0x7c00 | (bits >> 13 & 0x3ff));
}

// Calls f with a value of the C++ type of the dtype, one that x may have.
template <class F>
inline __attribute__((always_inline)) void with_type(DType dtype, F f) {
  switch (dtype) {
#define SI_CASE(number, name, type) \
  case DType::number:               \
    return f(type{});
    SI_DTYPES(SI_CASE)
#undef SI_CASE
    case DType::kI8:
      return;
  }
}

}  // namespace
}  // namespace sparseinfer
