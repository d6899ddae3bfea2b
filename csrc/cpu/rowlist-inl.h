// rowlist: one row at a time, its units in a panel as a plain list. Within a cell the rows are sorted by the length of
// their lists, so that consecutive rows run the same number of iterations and loop exits are predicted; rows with
// nothing in the panel do not appear at all. Best at high sparsity, where two of four rows rarely share a column.
//
// counts: Run[] {length, rows}; rows: uint16[] row within the split; offsets: one byte per unit; values: one payload
// per unit. Registers: 2 x T accumulators, because one set would run at the latency of the FMA, and four weights; x
// comes straight from L1 as an operand of the FMA.
#pragma once

#include "cpu/tiles-inl.h"

namespace sparseinfer {
namespace {

struct Rowlist {
  static constexpr int kMaxT = Simd::kListTile;

  template <int T>
  static SI_INLINE void unit(const float* x, V w, V (&acc)[T]) {
    SI_UNROLL
    for (int t = 0; t < T; ++t) acc[t] = Simd::fma(w, Simd::load(x + t * L), acc[t]);
  }

  // Four units with one load of weights and one of offsets: the load ports are what binds.
  template <int T>
  static SI_INLINE void quad(const float* x, const uint8_t* offsets, const float* values, V (&acc)[2][T]) {
    uint32_t at;
    memcpy(&at, offsets, sizeof at);
    const Simd::Quad w = Simd::load_quad(values);
    unit<T>(x + (at & 255) * (T * L), Simd::lane<0>(w), acc[0]);
    unit<T>(x + (at >> 8 & 255) * (T * L), Simd::lane<1>(w), acc[1]);
    unit<T>(x + (at >> 16 & 255) * (T * L), Simd::lane<2>(w), acc[0]);
    unit<T>(x + (at >> 24) * (T * L), Simd::lane<3>(w), acc[1]);
  }

  // acc [rows of the split][T * L]
  template <int T>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const float* x, float* acc) {
    const Cell* cell = section<Cell>(w, w->cells) + split * w->panels + panel;
    const Run* run = section<Run>(w, w->counts) + cell->counts;
    const Run* last = section<Run>(w, w->counts) + cell[1].counts;
    const uint16_t* row = section<uint16_t>(w, w->rows) + cell->rows;
    const uint8_t* offsets = section<uint8_t>(w, w->offsets) + cell->offsets;
    const float* values = section<float>(w, w->values) + cell->values;

    for (; run < last; ++run) {
      const int length = run->length;
      for (const uint16_t* row_end = row + run->rows; row < row_end; ++row) {
        float* out = acc + *row * (T * L);
        V sum[2][T];
        SI_UNROLL
        for (int t = 0; t < T; ++t) {
          sum[0][t] = Simd::load(out + t * L);
          sum[1][t] = Simd::zero();
        }
        int i = 0;
        for (; i + 4 <= length; i += 4) quad<T>(x, offsets + i, values + i, sum);
        for (; i < length; ++i) unit<T>(x + offsets[i] * (T * L), Simd::set1(values[i]), sum[0]);
        offsets += length;
        values += length;
        SI_UNROLL
        for (int t = 0; t < T; ++t) Simd::store(out + t * L, Simd::add(sum[0][t], sum[1][t]));
      }
    }
  }
};

}  // namespace
}  // namespace sparseinfer
