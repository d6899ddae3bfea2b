// rowgroup: 4 rows at a time. Within a panel the units are sorted by *which* of the 4 rows store them, 15 patterns,
// and each pattern has a loop without branches, specialised at compile time:
//
//     for each unit c of the pattern:  load x[c, T vectors];  for each row of the pattern:  acc[row] += w * x
//
// counts [15 of 16 bytes] per (group, panel); offsets: one byte per unit; values: one payload per (unit, row).
// Registers: 4 x T accumulators, T of x, one broadcast weight. Few tokens (small T) leave the FMA latency open, so
// consecutive units use different accumulator sets there, added at the end.
#pragma once

#include "cpu/tiles-inl.h"

namespace sparseinfer {
namespace {

struct Rowgroup {
  static constexpr int kMaxT = Simd::kGroupTile;

  template <int T, int Pattern>
  static SI_INLINE void unit(const float* x, const float* values, V (&acc)[4][T]) {
    V xv[T];
    SI_UNROLL
    for (int t = 0; t < T; ++t) xv[t] = Simd::load(x + t * L);
    int stored = 0;
    SI_UNROLL
    for (int r = 0; r < 4; ++r) {
      if (!(Pattern >> r & 1)) continue;
      const V w = Simd::set1(values[stored++]);
      SI_UNROLL
      for (int t = 0; t < T; ++t) acc[r][t] = Simd::fma(w, xv[t], acc[r][t]);
    }
  }

  template <int T, int Sets, int Pattern>
  static SI_INLINE void pattern(const float* x, int count, const uint8_t*& offsets, const float*& values,
                                V (&acc)[Sets][4][T]) {
    constexpr int kStored = __builtin_popcount(Pattern);
    for (; count >= Sets; count -= Sets) {
      SI_UNROLL
      for (int s = 0; s < Sets; ++s) unit<T, Pattern>(x + offsets[s] * (T * L), values + s * kStored, acc[s]);
      offsets += Sets;
      values += Sets * kStored;
    }
    if (Sets == 1) return;
    for (; count > 0; --count, ++offsets, values += kStored) unit<T, Pattern>(x + *offsets * (T * L), values, acc[0]);
  }

  // acc [rows of the split][T * L]
  template <int T>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const float* x, float* acc) {
    constexpr int Sets = Simd::kGroupTile >= 2 * T ? 2 : 1;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t groups = (split_rows[split + 1] - split_rows[split] + kGroupRows - 1) / kGroupRows;
    const Cell& cell = section<Cell>(w, w->cells)[split * w->panels + panel];
    const PatternCounts* counts = section<PatternCounts>(w, w->counts) + cell.counts;
    const uint8_t* offsets = section<uint8_t>(w, w->offsets) + cell.offsets;
    const float* values = section<float>(w, w->values) + cell.values;

    for (int64_t g = 0; g < groups; ++g, ++counts, acc += 4 * T * L) {
      V sum[Sets][4][T];
      SI_UNROLL
      for (int r = 0; r < 4; ++r) {
        SI_UNROLL
        for (int t = 0; t < T; ++t) {
          sum[0][r][t] = Simd::load(acc + (r * T + t) * L);
          SI_UNROLL
          for (int s = 1; s < Sets; ++s) sum[s][r][t] = Simd::zero();
        }
      }
      // clang-format off
#define SI_PATTERN(p) pattern<T, Sets, p>(x, counts->of[p], offsets, values, sum)
      SI_PATTERN(1); SI_PATTERN(2); SI_PATTERN(3); SI_PATTERN(4); SI_PATTERN(5);
      SI_PATTERN(6); SI_PATTERN(7); SI_PATTERN(8); SI_PATTERN(9); SI_PATTERN(10);
      SI_PATTERN(11); SI_PATTERN(12); SI_PATTERN(13); SI_PATTERN(14); SI_PATTERN(15);
#undef SI_PATTERN
      // clang-format on
      SI_UNROLL
      for (int r = 0; r < 4; ++r) {
        SI_UNROLL
        for (int t = 0; t < T; ++t) {
          V total = sum[0][r][t];
          SI_UNROLL
          for (int s = 1; s < Sets; ++s) total = Simd::add(total, sum[s][r][t]);
          Simd::store(acc + (r * T + t) * L, total);
        }
      }
    }
  }
};

}  // namespace
}  // namespace sparseinfer
