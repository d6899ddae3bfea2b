// bsr: stored blocks as small dense products on the x tiles. The rows of a block are cut into strips of 4 (2 or 1 where
// 4 does not divide them), because 4 x T accumulators are what the registers hold.
//
// counts: one byte, blocks per (strip, panel); offsets: one byte per (strip, block), block column within the panel;
// values: [strip][block][columns of the block][rows of the strip].
#pragma once

#include "cpu/tiles-inl.h"

namespace sparseinfer {
namespace {

struct Bsr {
  static constexpr int kMaxT = Simd::kGroupTile;

  template <int T>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const float* x, float* acc) {
    switch (strip_rows(w->block_rows)) {
      case 1:
        return strips<T, 1>(w, split, panel, x, acc);
      case 2:
        return strips<T, 2>(w, split, panel, x, acc);
      default:
        return strips<T, 4>(w, split, panel, x, acc);
    }
  }

  template <int T, int R>
  static void strips(const PackingHeader* w, int64_t split, int64_t panel, const float* x, float* acc) {
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t count = (split_rows[split + 1] - split_rows[split]) / R;
    const Cell& cell = section<Cell>(w, w->cells)[split * w->panels + panel];
    const uint8_t* counts = section<uint8_t>(w, w->counts) + cell.counts;
    const uint8_t* offsets = section<uint8_t>(w, w->offsets) + cell.offsets;
    const float* values = section<float>(w, w->values) + cell.values;
    const int64_t columns = w->block_cols;

    for (int64_t s = 0; s < count; ++s, acc += R * T * L) {
      if (counts[s] == 0) continue;
      V sum[R][T];
      SI_UNROLL
      for (int r = 0; r < R; ++r) {
        SI_UNROLL
        for (int t = 0; t < T; ++t) sum[r][t] = Simd::load(acc + (r * T + t) * L);
      }
      for (int block = 0; block < counts[s]; ++block) {
        const float* xb = x + *offsets++ * columns * (T * L);
        for (int64_t c = 0; c < columns; ++c, xb += T * L, values += R) {
          V xv[T];
          SI_UNROLL
          for (int t = 0; t < T; ++t) xv[t] = Simd::load(xb + t * L);
          SI_UNROLL
          for (int r = 0; r < R; ++r) {
            const V weight = Simd::set1(values[r]);
            SI_UNROLL
            for (int t = 0; t < T; ++t) sum[r][t] = Simd::fma(weight, xv[t], sum[r][t]);
          }
        }
      }
      SI_UNROLL
      for (int r = 0; r < R; ++r) {
        SI_UNROLL
        for (int t = 0; t < T; ++t) Simd::store(acc + (r * T + t) * L, sum[r][t]);
      }
    }
  }
};

}  // namespace
}  // namespace sparseinfer
