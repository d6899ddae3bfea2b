// csr: the kernel that always works, for few tokens. Up to 4 tokens share one read of a row's columns and values; x is
// gathered from its rows. counts: int64 crow[n + 1]; offsets: uint32 columns; values: payloads.
#pragma once

#include "cpu/activation-inl.h"
#include "cpu/tiles-inl.h"

namespace sparseinfer {
namespace {

struct Csr {
  static int64_t workspace_bytes(const SpmmArgs&) { return 0; }
  static int64_t scratch_bytes(const SpmmArgs&) { return 0; }
  static int64_t prepare_items(const SpmmArgs&) { return 0; }
  static void prepare(const SpmmArgs&, int64_t, int64_t) {}

  static void run(const SpmmArgs& a, int64_t begin, int64_t end, char*) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    for (int64_t token = 0; token < a.m;) {
      const int64_t left = a.m - token;
      if (left >= 4) {
        rows<4>(a, split_rows[begin], split_rows[end], token);
        token += 4;
      } else if (left >= 2) {
        rows<2>(a, split_rows[begin], split_rows[end], token);
        token += 2;
      } else {
        rows<1>(a, split_rows[begin], split_rows[end], token);
        token += 1;
      }
    }
  }

  template <int T>
  static void rows(const SpmmArgs& a, int64_t begin, int64_t end, int64_t token) {
    const int64_t* crow = section<int64_t>(a.w, a.w->counts);
    const uint32_t* columns = section<uint32_t>(a.w, a.w->offsets);
    const float* values = section<float>(a.w, a.w->values);
    const float* x = static_cast<const float*>(a.x) + token * a.ldx;
    float* y = static_cast<float*>(a.y) + token * a.ldy;
    for (int64_t row = begin; row < end; ++row) {
      V sum[T];
      SI_UNROLL
      for (int t = 0; t < T; ++t) sum[t] = Simd::zero();
      int64_t i = crow[row];
      for (; i + L <= crow[row + 1]; i += L) {
        const V w = Simd::load(values + i);
        SI_UNROLL
        for (int t = 0; t < T; ++t) sum[t] = Simd::fma(w, Simd::gather(x + t * a.ldx, columns + i), sum[t]);
      }
      const float bias = a.bias ? a.bias[row] : 0.0f;
      float out[T];
      SI_UNROLL
      for (int t = 0; t < T; ++t) out[t] = Simd::sum(sum[t]);
      for (; i < crow[row + 1]; ++i) {
        SI_UNROLL
        for (int t = 0; t < T; ++t) out[t] += values[i] * x[t * a.ldx + columns[i]];
      }
      SI_UNROLL
      for (int t = 0; t < T; ++t) {
        Simd::store_partial(y + t * a.ldy + row, activate(Simd::set1(out[t] + bias), a.activation), 1);
      }
    }
  }
};

}  // namespace
}  // namespace sparseinfer
