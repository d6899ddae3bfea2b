// Layer normalization of whole rows of y, after a product has written them and while they are in cache.
#pragma once

#include "cpu/types-inl.h"

namespace sparseinfer {
namespace {

// y[token, :] and the residual that is added to it; T is the type of both.
template <class T>
struct SummedRow {
  T* y;
  const T* residual;
  int64_t n;

  SI_INLINE Row::V sum(int64_t i) const { return Row::add(Row::load(y + i), Row::load(residual + i)); }
  SI_INLINE Row::V partial(int64_t i, int count) const {
    return Row::add(Row::load_partial(y + i, count), Row::load_partial(residual + i, count));
  }

  // The sum of f(v, count) over vectors v of the row, with `count` elements that belong to it; the others of the last
  // are 0. Four sums hide the latency of the addition.
  template <class F>
  SI_INLINE float total(F f) const {
    Row::V sums[4];
    SI_UNROLL
    for (int s = 0; s < 4; ++s) sums[s] = Row::zero();
    int64_t i = 0;
    for (; i + 4 * R <= n; i += 4 * R) {
      SI_UNROLL
      for (int s = 0; s < 4; ++s) sums[s] = Row::add(sums[s], f(sum(i + s * R), R));
    }
    for (; i < n; i += R) {
      const int count = n - i < R ? static_cast<int>(n - i) : R;
      sums[0] = Row::add(sums[0], f(count == R ? sum(i) : partial(i, count), count));
    }
    return Row::sum(Row::add(Row::add(sums[0], sums[1]), Row::add(sums[2], sums[3])));
  }
};

// weight or bias [i : i + count]; T is the type of y.
template <class T>
SI_INLINE Row::V affine_at(const void* vector, DType dtype, int64_t i, int count) {
  if (dtype == DType::kF32) return Row::load_partial(static_cast<const float*>(vector) + i, count);
  return Row::load_partial(static_cast<const T*>(vector) + i, count);
}

template <class T>
void norm_row(const RowNorm& norm, const SummedRow<T>& row) {
  const auto n = static_cast<double>(row.n);
  const auto mean = static_cast<float>(static_cast<double>(row.total([](Row::V v, int) { return v; })) / n);
  const Row::V means = Row::set1(mean);
  const float squares = row.total([&](Row::V v, int count) {
    const Row::V off = Row::sub(v, means);
    const Row::V square = Row::mul(off, off);
    if (count == R) return square;
    float values[R];
    Row::store(values, square);
    return Row::load_partial(values, count);
  });
  const double variance = static_cast<double>(squares) / n;
  const Row::V scale = Row::set1(static_cast<float>(1.0 / __builtin_sqrt(variance + norm.eps)));
  for (int64_t i = 0; i < row.n; i += R) {
    const int count = row.n - i < R ? static_cast<int>(row.n - i) : R;
    Row::V v = Row::mul(Row::sub(count == R ? row.sum(i) : row.partial(i, count), means), scale);
    if (norm.weight != nullptr) v = Row::mul(v, affine_at<T>(norm.weight, norm.dtype, i, count));
    if (norm.bias != nullptr) v = Row::add(v, affine_at<T>(norm.bias, norm.dtype, i, count));
    if (count == R) {
      Row::store(row.y + i, v);
    } else {
      Row::store_partial(row.y + i, v, count);
    }
  }
}

// Rows [begin, end) of y.
void norm_rows(const SpmmArgs& a, const RowNorm& norm, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t token = begin; token < end; ++token) {
      const T* residual = static_cast<const T*>(norm.residual) + (a.first_token + token) * norm.ld;
      norm_row(norm, SummedRow<T>{static_cast<T*>(a.y) + token * a.ldy, residual, a.w->n});
    }
  });
}

}  // namespace
}  // namespace sparseinfer
