// Common to rows-inl.h and tiles-inl.h: vectors for whole rows, rounding of x, and reading of a bias.
#pragma once

#include "cpu/unroll.h"
#include "sparseinfer/dtypes.h"
#include "sparseinfer/halves.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {
namespace {

using Row = Level::Row;
constexpr int R = Row::L;

// x[count] -> out[count], to nearest.
SI_INLINE void round_row(const float* x, int64_t count, BF16* out) {
  int64_t i = 0;
  for (; i + R <= count; i += R) Row::store(out + i, Row::load(x + i));
  for (; i < count; ++i) narrow(x[i], out + i);
}

// bias[row : row + count] as a vector of Vec; T is the type of y.
template <class Vec, class T>
SI_INLINE typename Vec::V load_bias(const SpmmArgs& a, int64_t row, int count) {
  if (a.bias_dtype == DType::kF32) return Vec::load_partial(static_cast<const float*>(a.bias) + row, count);
  return Vec::load_partial(static_cast<const T*>(a.bias) + row, count);
}

// bias[row]
template <class T>
SI_INLINE float bias_at(const SpmmArgs& a, int64_t row) {
  if (a.bias_dtype == DType::kF32) return static_cast<const float*>(a.bias)[row];
  return widen(static_cast<const T*>(a.bias)[row]);
}

}  // namespace
}  // namespace sparseinfer
