// Kernel body for `rowgroup`: multiplies 4 rows at a time. Within a panel the units are sorted by *which* of the 4 rows
// store them, 15 patterns, and each pattern has a loop without branches, specialised at compile time:
//
//     for each step of the pattern:  load x[unit, tokens];  for each row of the pattern:  sum[row] += w * x
//
// counts: steps of each pattern per (group, panel); offsets: positions, `rowgroup_step` of them per step; values: per
// multiply and row of the pattern one payload (pair storage two). Registers: 4 rows of sums, x, four broadcast weights.
// With few tokens the latency of the multiply-add would limit a single set of sums, so the multiplies of one step then
// use different sets.
#pragma once

#include "cpu/steps-inl.h"

namespace sparseinfer {
namespace {

template <TileMode kMode_, class Payload>
struct Rowgroup : PackedPanels {
  template <class S>
  using Step = sparseinfer::Step<S, Payload>;
  static constexpr TileMode kMode = kMode_;
  static constexpr int kRows = kGroupRows;
  static constexpr bool kForImages = kMode == TileMode::kFloat;
  static SI_INLINE FilledPlanes planes(const float* x, size_t plane, size_t columns, const float* zeros) {
    return {{x, plane}, columns, zeros};
  }

  template <class S, int Pattern, class Columns>
  static SI_INLINE void pattern(const Columns& x, int count, const uint16_t*& offsets, const Payload*& values,
                                typename S::Vec::V (&sum)[4][S::kSums]) {
    using Vec = typename S::Vec;
    constexpr int kStored = __builtin_popcount(Pattern), kPositions = Step<S>::kPositions;
    // Multiplies of a step (rowgroup_step): those of a quad of weights, one load for four broadcasts.
    constexpr int kMultiplies = kMode == TileMode::kBytes || kStored > 2 ? 1 : kStored == 1 ? 4 : 2;
    constexpr int kSets = S::kSums * kStored >= 4 ? 1 : kMultiplies;
    typename Vec::V more[kSets][kStored][S::kSums];
    SI_UNROLL
    for (int i = 0; i < kSets * kStored * S::kSums; ++i) (&more[0][0][0])[i] = Vec::zero();

    for (; count > 0; --count, offsets += kMultiplies * kPositions, values += kMultiplies * kStored * kPositions) {
      const typename Step<S>::Quad quad = Step<S>::quad(values);
      __builtin_prefetch(reinterpret_cast<const char*>(values) + kPrefetchBytes);
      multiply<S, Pattern, 0, kMultiplies, kSets>(x, Positions<kMultiplies * kPositions>(offsets), quad, sum, more);
    }
    SI_UNROLL
    for (int s = 1; s < kSets; ++s) {
      int stored = 0;
      SI_UNROLL
      for (int r = 0; r < 4; ++r) {
        if (!(Pattern >> r & 1)) continue;
        SI_UNROLL
        for (int t = 0; t < S::kSums; ++t) sum[r][t] = Vec::add(sum[r][t], more[s][stored][t]);
        ++stored;
      }
    }
  }

  // Multiply `kIndex` of a step and those after it.
  template <class S, int Pattern, int kIndex, int kMultiplies, int kSets, class Columns, int N, int kStored>
  static SI_INLINE void multiply(const Columns& x, const Positions<N>& positions, typename Step<S>::Quad quad,
                                 typename S::Vec::V (&sum)[4][S::kSums],
                                 typename S::Vec::V (&more)[kSets][kStored][S::kSums]) {
    typename Step<S>::X xv[S::kSums];
    Step<S>::template load<kIndex * Step<S>::kPositions>(x, positions, xv);
    rows<S, Pattern, 0, kIndex * kStored>(quad, xv, [&](int r, int stored, int t) -> typename S::Vec::V& {
      return kIndex % kSets == 0 ? sum[r][t] : more[kIndex % kSets][stored][t];
    });
    if constexpr (kIndex + 1 < kMultiplies) {
      multiply<S, Pattern, kIndex + 1, kMultiplies, kSets>(x, positions, quad, sum, more);
    }
  }

  // Row `kRow` of the pattern and those after it, with weights from lane `kLane` on.
  template <class S, int Pattern, int kRow, int kLane, class Sum>
  static SI_INLINE void rows(typename Step<S>::Quad quad, const typename Step<S>::X (&xv)[S::kSums], Sum sum) {
    if constexpr (kRow < 4) {
      constexpr bool kHas = Pattern >> kRow & 1;
      if constexpr (kHas) {
        constexpr int kBefore = __builtin_popcount(Pattern & ((1 << kRow) - 1));
        const auto w = Step<S>::template lane<kLane>(quad);
        SI_UNROLL
        for (int t = 0; t < S::kSums; ++t) {
          typename S::Vec::V& to = sum(kRow, kBefore, t);
          to = Step<S>::multiply(w, xv[t], to);
        }
      }
      rows<S, Pattern, kRow + 1, kLane + kHas>(quad, xv, sum);
    }
  }

  // The groups of a cell: done(first row of the group in the split, sums). sums [rows of the split][tokens], with
  // `kFresh` not read; x is a tile, or FilledPlanes.
  template <class S, bool kFresh, class Columns, class Done>
  static SI_INLINE void for_groups(const PackingHeader* w, int64_t split, int64_t panel, const Columns& x,
                                   const float* sums, Done done) {
    using Vec = typename S::Vec;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t groups = (split_rows[split + 1] - split_rows[split] + kGroupRows - 1) / kGroupRows;
    const Cell& cell = section<Cell>(w, w->cells)[split * w->panels + panel];
    const PatternCounts* counts = section<PatternCounts>(w, w->counts) + cell.counts;
    const uint16_t* offsets = section<uint16_t>(w, w->offsets) + cell.offsets;
    const Payload* values = section<Payload>(w, w->values) + cell.values;

    for (int64_t g = 0; g < groups; ++g, ++counts, sums += 4 * S::kTokens) {
      typename Vec::V sum[4][S::kSums];
      SI_UNROLL
      for (int r = 0; r < 4; ++r) {
        SI_UNROLL
        for (int t = 0; t < S::kSums; ++t) {
          sum[r][t] = kFresh ? Vec::zero() : Vec::load(sums + r * S::kTokens + t * Vec::L);
        }
      }
      // clang-format off
#define SI_PATTERN(p) pattern<S, p>(x, counts->of[p], offsets, values, sum)
      SI_PATTERN(1); SI_PATTERN(2); SI_PATTERN(3); SI_PATTERN(4); SI_PATTERN(5);
      SI_PATTERN(6); SI_PATTERN(7); SI_PATTERN(8); SI_PATTERN(9); SI_PATTERN(10);
      SI_PATTERN(11); SI_PATTERN(12); SI_PATTERN(13); SI_PATTERN(14); SI_PATTERN(15);
#undef SI_PATTERN
      // clang-format on
      done(g * kGroupRows, sum);
    }
  }

  template <class S, class Columns>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const Columns& x, float* sums, int64_t,
                   char*) {
    using V = typename S::Vec::V;
    for_groups<S, false>(w, split, panel, x, sums,
                         [&](int64_t row, V(&sum)[4][S::kSums]) __attribute__((always_inline)) {
                           SI_UNROLL
                           for (int r = 0; r < 4; ++r) {
                             SI_UNROLL
                             for (int t = 0; t < S::kSums; ++t)
                               S::Vec::store(sums + (row + r) * S::kTokens + t * S::Vec::L, sum[r][t]);
                           }
                         });
  }

  // The same for the last panel, with `kFresh` the only one: put(row of W, sums) takes each row.
  template <class S, bool kFresh, class Columns, class Rows>
  static void last_cell(const PackingHeader* w, int64_t split, int64_t panel, const Columns& x, const float* sums,
                        const Rows& put) {
    using V = typename S::Vec::V;
    const int64_t first = section<int64_t>(w, w->split_rows)[split];
    const int64_t end = section<int64_t>(w, w->split_rows)[split + 1];
    for_groups<S, kFresh>(w, split, panel, x, sums,
                          [&](int64_t row, V(&sum)[4][S::kSums]) __attribute__((always_inline)) {
                            SI_UNROLL
                            for (int r = 0; r < 4; ++r) {
                              put.prefetch(first + row + kRowsAhead + r);
                              if (first + row + r < end) put.put(first + row + r, sum[r]);
                            }
                          });
  }
};

using RowgroupF32 = Rowgroup<TileMode::kFloat, float>;
using RowgroupWBF16 = Rowgroup<TileMode::kFloat, BF16>;
using RowgroupWF16 = Rowgroup<TileMode::kFloat, F16>;
using RowgroupBF16 = Rowgroup<TileMode::kPairs, uint16_t>;
using RowgroupI8 = Rowgroup<TileMode::kBytes, int8_t>;

}  // namespace
}  // namespace sparseinfer
