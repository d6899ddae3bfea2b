// rowgroup: 4 rows at a time. Within a panel the units are sorted by *which* of the 4 rows store them, 15 patterns,
// and each pattern has a loop without branches, specialised at compile time:
//
//     for each step of the pattern:  load x[unit, tokens];  for each row of the pattern:  sum[row] += w * x
//
// counts: steps of each pattern per (group, panel); offsets: positions, one or (pair storage) two a step; values: per
// step and row of the pattern as many payloads. Registers: 4 rows of sums, x, one broadcast weight. Few tokens leave the
// latency of the multiply open, so consecutive steps use different sets of sums there, added at the end.
#pragma once

#include "cpu/steps-inl.h"

namespace sparseinfer {
namespace {

template <TileMode kMode_>
struct Rowgroup {
  static constexpr TileMode kMode = kMode_;
  static constexpr int kRows = kGroupRows;

  template <class S, int Pattern>
  static SI_INLINE void step(const typename S::Element* x, const uint16_t* offsets,
                             const typename Step<S>::Payload* values, typename S::Vec::V (&sum)[4][S::kSums]) {
    typename Step<S>::X xv[S::kSums];
    Step<S>::load(x, offsets, xv);
    int stored = 0;
    SI_UNROLL
    for (int r = 0; r < 4; ++r) {
      if (!(Pattern >> r & 1)) continue;
      const auto w = Step<S>::weight(values + stored++ * Step<S>::kPositions);
      SI_UNROLL
      for (int t = 0; t < S::kSums; ++t) sum[r][t] = Step<S>::multiply(w, xv[t], sum[r][t]);
    }
  }

  template <class S, int Pattern, int Sets>
  static SI_INLINE void pattern(const typename S::Element* x, int count, const uint16_t*& offsets,
                                const typename Step<S>::Payload*& values, typename S::Vec::V (&sum)[Sets][4][S::kSums]) {
    constexpr int kOffsets = Step<S>::kPositions;
    constexpr int kValues = __builtin_popcount(Pattern) * kOffsets;
    for (; count >= Sets; count -= Sets, offsets += Sets * kOffsets, values += Sets * kValues) {
      SI_UNROLL
      for (int s = 0; s < Sets; ++s) step<S, Pattern>(x, offsets + s * kOffsets, values + s * kValues, sum[s]);
    }
    if (Sets == 1) return;
    for (; count > 0; --count, offsets += kOffsets, values += kValues) step<S, Pattern>(x, offsets, values, sum[0]);
  }

  // sums [rows of the split][tokens]
  template <class S>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const typename S::Element* x, float* sums) {
    using Vec = typename S::Vec;
    constexpr int Sets = S::kSums >= 4 ? 1 : 2;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t groups = (split_rows[split + 1] - split_rows[split] + kGroupRows - 1) / kGroupRows;
    const Cell& cell = section<Cell>(w, w->cells)[split * w->panels + panel];
    const PatternCounts* counts = section<PatternCounts>(w, w->counts) + cell.counts;
    const uint16_t* offsets = section<uint16_t>(w, w->offsets) + cell.offsets;
    const auto* values = section<typename Step<S>::Payload>(w, w->values) + cell.values;

    for (int64_t g = 0; g < groups; ++g, ++counts, sums += 4 * S::kTokens) {
      typename Vec::V sum[Sets][4][S::kSums];
      SI_UNROLL
      for (int r = 0; r < 4; ++r) {
        SI_UNROLL
        for (int t = 0; t < S::kSums; ++t) {
          sum[0][r][t] = Vec::load(sums + r * S::kTokens + t * Vec::L);
          SI_UNROLL
          for (int s = 1; s < Sets; ++s) sum[s][r][t] = Vec::zero();
        }
      }
      // clang-format off
#define SI_PATTERN(p) pattern<S, p, Sets>(x, counts->of[p], offsets, values, sum)
      SI_PATTERN(1); SI_PATTERN(2); SI_PATTERN(3); SI_PATTERN(4); SI_PATTERN(5);
      SI_PATTERN(6); SI_PATTERN(7); SI_PATTERN(8); SI_PATTERN(9); SI_PATTERN(10);
      SI_PATTERN(11); SI_PATTERN(12); SI_PATTERN(13); SI_PATTERN(14); SI_PATTERN(15);
#undef SI_PATTERN
      // clang-format on
      SI_UNROLL
      for (int r = 0; r < 4; ++r) {
        SI_UNROLL
        for (int t = 0; t < S::kSums; ++t) {
          typename Vec::V total = sum[0][r][t];
          SI_UNROLL
          for (int s = 1; s < Sets; ++s) total = Vec::add(total, sum[s][r][t]);
          Vec::store(sums + r * S::kTokens + t * Vec::L, total);
        }
      }
    }
  }
};

}  // namespace
}  // namespace sparseinfer
