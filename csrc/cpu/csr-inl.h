// Kernel body for `csr`, the baseline. Up to 4 tokens share one read of a row's columns and values; x is gathered.
// counts: int64 crow[n + 1]; offsets: uint32 columns; values: fp32.
#pragma once

#include "cpu/rows-inl.h"

namespace sparseinfer {
namespace {

struct Csr {
  using Element = float;
  static constexpr int kMaxTokens = 4;
  static constexpr int64_t kScratchBytes = kMaxTokens * kMaxSplitRows * 4;

  template <int T>
  static void tokens(const SpmmArgs& a, int64_t split, const float* x, int64_t stride, int64_t token, char* scratch) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    const int64_t* crow = section<int64_t>(a.w, a.w->counts);
    const uint32_t* columns = section<uint32_t>(a.w, a.w->offsets);
    const float* values = section<float>(a.w, a.w->values);
    float* out = reinterpret_cast<float*>(scratch);
    const int64_t begin = split_rows[split], rows = split_rows[split + 1] - begin;
    for (int64_t row = 0; row < rows; ++row) {
      Row::V sum[T];
      SI_UNROLL
      for (int t = 0; t < T; ++t) sum[t] = Row::zero();
      int64_t i = crow[begin + row];
      const int64_t end = crow[begin + row + 1];
      for (; i + R <= end; i += R) {
        const Row::V w = Row::load(values + i);
        SI_UNROLL
        for (int t = 0; t < T; ++t) sum[t] = Row::fma(w, Row::gather(x + t * stride, columns + i), sum[t]);
      }
      SI_UNROLL
      for (int t = 0; t < T; ++t) {
        float total = Row::sum(sum[t]);
        for (int64_t j = i; j < end; ++j) total += values[j] * x[t * stride + columns[j]];
        out[t * kMaxSplitRows + row] = total;
      }
    }
    for (int t = 0; t < T; ++t) finish_rows(a, out + t * kMaxSplitRows, token + t, begin, rows);
  }
};

}  // namespace
}  // namespace sparseinfer
