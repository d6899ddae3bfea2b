// Kernel body for `rowlist`: multiplies one row at a time, whose units in a panel are a plain list. Within a cell the
// rows are sorted by the length of their lists, so that consecutive rows run the same number of iterations and loop
// exits are predicted; rows with nothing in the panel do not appear at all. Best at high sparsity, where two of four
// rows rarely share a column.
//
// counts: Run[] {length, rows}; rows: uint16[] row within the split; offsets: one position per unit; values: one
// payload per unit. Pair storage has an even number of units per row. Registers: sets of sums, because one set would
// be limited by the latency of the multiply-add, and four broadcast weights; x comes straight from L1 as an operand of
// the multiply.
#pragma once

#include "cpu/steps-inl.h"

namespace sparseinfer {
namespace {

template <TileMode kMode_, class Payload>
struct Rowlist : PackedPanels {
  template <class S>
  using Step = sparseinfer::Step<S, Payload>;
  static constexpr TileMode kMode = kMode_;
  static constexpr int kRows = 1;
  static constexpr bool kForImages = kMode == TileMode::kFloat;
  // Of a panel; lists are not filled up.
  static SI_INLINE Planes planes(const float* x, size_t plane, size_t, const float*) { return {x, plane}; }

  // One multiply, the positions of which are those from kFirst on.
  template <class S, int kFirst = 0, class Columns, int N, class W>
  static SI_INLINE void step(Columns x, const Positions<N>& positions, W w, typename S::Vec::V (&sum)[S::kSums]) {
    typename Step<S>::X xv[S::kSums];
    Step<S>::template load<kFirst>(x, positions, xv);
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) sum[t] = Step<S>::multiply(w, xv[t], sum[t]);
  }

  // Four steps with one load of weights, and few of positions: the load ports are what binds.
  template <class S, int Sets, class Columns>
  static SI_INLINE void quad(Columns x, const uint16_t* offsets, const Payload* values,
                             typename S::Vec::V (&sum)[Sets][S::kSums]) {
    constexpr int kOffsets = Step<S>::kPositions;
    const typename Step<S>::Quad w = Step<S>::quad(values);
    __builtin_prefetch(reinterpret_cast<const char*>(values) + kPrefetchBytes);
    const Positions<4 * kOffsets> at(offsets);
    step<S>(x, at, Step<S>::template lane<0>(w), sum[0]);
    step<S, kOffsets>(x, at, Step<S>::template lane<1>(w), sum[1 % Sets]);
    step<S, 2 * kOffsets>(x, at, Step<S>::template lane<2>(w), sum[2 % Sets]);
    step<S, 3 * kOffsets>(x, at, Step<S>::template lane<3>(w), sum[3 % Sets]);
  }

  // sum[tokens] of one row += its list, or = with `kFresh`. `kWhole`: the list is one of whole steps; else a last unit
  // may stand alone.
  template <class S, bool kWhole, bool kFresh, class Columns>
  static SI_INLINE void multiply_row(Columns x, const uint16_t* offsets, const Payload* values, int length,
                                     const float* sums, typename S::Vec::V (&total)[S::kSums]) {
    using Vec = typename S::Vec;
    constexpr int Sets = S::kSums >= 8 ? 1 : S::kSums >= 4 ? 2 : 4;
    constexpr int kOffsets = Step<S>::kPositions;
    typename Vec::V sum[Sets][S::kSums];
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) {
      sum[0][t] = kFresh ? Vec::zero() : Vec::load(sums + t * Vec::L);
      SI_UNROLL
      for (int s = 1; s < Sets; ++s) sum[s][t] = Vec::zero();
    }
    int i = 0;
    for (; i + 4 * kOffsets <= length; i += 4 * kOffsets) quad<S, Sets>(x, offsets + i, values + i, sum);
    for (; i + kOffsets <= length; i += kOffsets) {
      step<S>(x, Positions<kOffsets>(offsets + i), Step<S>::weight(values + i), sum[0]);
    }
    if constexpr (!kWhole && kOffsets == 2) {
      // The value behind it belongs to another row: it must not meet x, were it NaN.
      const Payload alone[2] = {values[i < length ? i : 0], 0};
      if (i < length) step<S>(x, Positions<kOffsets>(offsets + i), Step<S>::weight(alone), sum[0]);
    }
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) {
      total[t] = sum[0][t];
      SI_UNROLL
      for (int s = 1; s < Sets; ++s) total[t] = Vec::add(total[t], sum[s][t]);
    }
  }

  template <class S, bool kWhole, class Columns>
  static SI_INLINE void row(Columns x, const uint16_t* offsets, const Payload* values, int length, float* out) {
    typename S::Vec::V total[S::kSums];
    multiply_row<S, kWhole, false>(x, offsets, values, length, out, total);
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) S::Vec::store(out + t * S::Vec::L, total[t]);
  }

  // Calls each(where the row stands, length, offsets, values) for the rows of a cell.
  template <class Each>
  static SI_INLINE void for_rows(const PackingHeader* w, int64_t split, int64_t panel, Each each) {
    const Cell* cell = section<Cell>(w, w->cells) + split * w->panels + panel;
    const Run* run = section<Run>(w, w->counts) + cell->counts;
    const Run* last = section<Run>(w, w->counts) + cell[1].counts;
    const uint16_t* rows = section<uint16_t>(w, w->rows) + cell->rows;
    const uint16_t* offsets = section<uint16_t>(w, w->offsets) + cell->offsets;
    const Payload* values = section<Payload>(w, w->values) + cell->values;
    for (; run < last; ++run) {
      const int length = run->length;
      for (const uint16_t* end = rows + run->rows; rows < end; ++rows, offsets += length, values += length) {
        each(rows, length, offsets, values);
      }
    }
  }

  // sums [rows of the split][tokens]; x is a tile, or Planes
  template <class S, class Columns>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, Columns x, float* sums, int64_t, char*) {
    for_rows(w, split, panel,
             [&](const uint16_t* r, int length, const uint16_t* offsets, const Payload* values)
                 __attribute__((always_inline)) { row<S, true>(x, offsets, values, length, sums + *r * S::kTokens); });
  }

  // The same for the last panel, with `kFresh` the only one: put(row of W, sums) takes each row.
  template <class S, bool kFresh, class Columns, class Rows>
  static void last_cell(const PackingHeader* w, int64_t split, int64_t panel, Columns x, const float* sums,
                        const Rows& put) {
    const int64_t first = section<int64_t>(w, w->split_rows)[split];
    const int64_t rows = section<int64_t>(w, w->split_rows)[split + 1] - first;
    const Cell* cell = section<Cell>(w, w->cells) + split * w->panels + panel;
    const uint16_t* listed = section<uint16_t>(w, w->rows) + cell->rows;
    const uint16_t* end = section<uint16_t>(w, w->rows) + cell[1].rows;
    typename S::Vec::V total[S::kSums];
    for_rows(w, split, panel,
             [&](const uint16_t* r, int length, const uint16_t* offsets, const Payload* values)
                 __attribute__((always_inline)) {
                   if (r + kRowsAhead < end) put.prefetch(first + r[kRowsAhead]);
                   multiply_row<S, true, kFresh>(x, offsets, values, length, sums + *r * S::kTokens, total);
                   put.put(first + *r, total);
                 });
    if (end - listed == rows) return;
    bool is_listed[kMaxSplitRows] = {};
    for (; listed < end; ++listed) is_listed[*listed] = true;
    for (int64_t r = 0; r < rows; ++r) {
      if (is_listed[r]) continue;
      SI_UNROLL
      for (int t = 0; t < S::kSums; ++t) {
        total[t] = kFresh ? S::Vec::zero() : S::Vec::load(sums + r * S::kTokens + t * S::Vec::L);
      }
      put.put(first + r, total);
    }
  }
};

using RowlistF32 = Rowlist<TileMode::kFloat, float>;
using RowlistWBF16 = Rowlist<TileMode::kFloat, BF16>;
using RowlistWF16 = Rowlist<TileMode::kFloat, F16>;
using RowlistBF16 = Rowlist<TileMode::kPairs, uint16_t>;
using RowlistI8 = Rowlist<TileMode::kBytes, int8_t>;

}  // namespace
}  // namespace sparseinfer
