// Kernel bodies for `grouplist`: 16 rows share a list of columns, so the 16 weights of a column are one vector, and
// nothing is gathered.
//
// counts: uint16 columns per (group, panel); offsets: uint16 column in the panel; values: [column][rows of the group],
// in pair storage [column pairs][rows][2] with a last column of zeros where their number is odd. Groups of fewer rows
// than 16 are read as 16: up to 60 bytes past the last value, and sums that belong to no row are not stored.
//
// Few tokens: sum[token][rows] += w[rows] * x[token][column], with x as a memory operand that the multiply broadcasts.
// Registers: the sums, w. A weight is read once for all tokens, and no value of x is moved otherwise.
//
// Many tokens: a dense product with a list of columns. Strips of a group's rows are multiplied by vectors of tokens, as
// many rows as registers hold sums for: 16 rows of one vector, 8 of two or three, 4 of four. Weights are broadcast from
// memory. The strips of a group read the same columns of x one after another, so that all but the first find them in
// L1.
#pragma once

#include "cpu/rows-inl.h"
#include "cpu/steps-inl.h"

namespace sparseinfer {
namespace {

constexpr int kListVectors = kListRows / R;

// The weights of one step of all rows of a group: one column, or a pair of them.
template <class T>
struct ListWidened {
  using Payload = T;
  static constexpr int kColumns = 1;
  static constexpr bool kRoundsX = false;
  Row::V values[kListVectors];
  SI_INLINE explicit ListWidened(const T* payloads) {
    SI_UNROLL
    for (int v = 0; v < kListVectors; ++v) values[v] = Row::load(payloads + v * R);
  }
  SI_INLINE void multiply(const float* x, const uint16_t* offsets, Row::V (&sum)[kListVectors]) const {
    const Row::V xv = Row::set1(x[*offsets]);
    SI_UNROLL
    for (int v = 0; v < kListVectors; ++v) sum[v] = Row::fma(values[v], xv, sum[v]);
  }
};

// The low and the high half of a pair are widened by one instruction each; making pairs of x would take more.
struct ListPairs {
  using Payload = uint16_t;
  static constexpr int kColumns = 2;
  static constexpr bool kRoundsX = true;
  Row::V low[kListVectors], high[kListVectors];
  SI_INLINE explicit ListPairs(const uint16_t* payloads) {
    SI_UNROLL
    for (int v = 0; v < kListVectors; ++v) {
      const Row::P pairs = Row::load_pairs(payloads + v * 2 * R);
      low[v] = Row::low(pairs);
      high[v] = Row::high(pairs);
    }
  }
  SI_INLINE void multiply(const float* x, const uint16_t* offsets, Row::V (&sum)[kListVectors]) const {
    first(x, offsets, sum);
    const Row::V xv = Row::set1(x[offsets[1]]);
    SI_UNROLL
    for (int v = 0; v < kListVectors; ++v) sum[v] = Row::fma(high[v], xv, sum[v]);
  }
  // Of a pair whose second column is padding.
  SI_INLINE void first(const float* x, const uint16_t* offsets, Row::V (&sum)[kListVectors]) const {
    const Row::V xv = Row::set1(x[*offsets]);
    SI_UNROLL
    for (int v = 0; v < kListVectors; ++v) sum[v] = Row::fma(low[v], xv, sum[v]);
  }
};

template <class Weights>
struct GrouplistRows {
  using Element = float;
  using Payload = typename Weights::Payload;
  static constexpr bool kRoundsX = Weights::kRoundsX;
  static constexpr int kMaxTokens = Level::kRegisters / kListVectors >= 32 ? 8 : 4;
  static constexpr int64_t kScratchRows = kMaxSplitRows + kListRows;
  static constexpr int64_t kScratchBytes = kMaxTokens * kScratchRows * 4;

  template <int T>
  static void tokens(const SpmmArgs& a, int64_t split, const float* x, int64_t stride, int64_t token, char* scratch) {
    const PackingHeader* w = a.w;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t begin = split_rows[split], rows = split_rows[split + 1] - begin, each = list_rows(w->block_rows);
    float* sums = reinterpret_cast<float*>(scratch);
    if (w->panels == 0) return finish_empty<T>(a, token, begin, rows);
    const Cell& cell = section<Cell>(w, w->cells)[split * w->panels];
    const uint16_t* counts = section<uint16_t>(w, w->counts) + cell.counts;
    const uint16_t* offsets = section<uint16_t>(w, w->offsets) + cell.offsets;
    const Payload* values = section<Payload>(w, w->values) + cell.values;

    for (int64_t panel = 0; panel < w->panels; ++panel, x += w->panel) {
      for (int64_t row = 0; row < rows; row += each, ++counts) {
        Row::V sum[T][kListVectors];
        for_sums<T>([&](int t, int v) {
          sum[t][v] = panel > 0 ? Row::load(sums + t * kScratchRows + row + v * R) : Row::zero();
        });
        list<T>(x, stride, *counts, each, offsets, values, sum);
        const bool is_last = panel + 1 == w->panels;
        for_sums<T>([&](int t, int v) {
          const int64_t left = each - v * R;
          if (left <= 0) return;
          const int count = left < R ? static_cast<int>(left) : R;
          if (is_last) return finish(a, sum[t][v], token + t, begin + row + v * R, count);
          Row::store_partial(sums + t * kScratchRows + row + v * R, sum[t][v], count);
        });
      }
    }
  }

  template <int T, class F>
  static SI_INLINE void for_sums(F f) {
    SI_UNROLL
    for (int t = 0; t < T; ++t) {
      SI_UNROLL
      for (int v = 0; v < kListVectors; ++v) f(t, v);
    }
  }

  // sum += the list of one group in a panel.
  template <int T>
  static SI_INLINE void list(const float* x, int64_t stride, int count, int64_t each, const uint16_t*& offsets,
                             const Payload*& values, Row::V (&sum)[T][kListVectors]) {
    // Enough independent sums to hide the latency of the multiply.
    constexpr int kSets = T * kListVectors >= 8 ? 1 : T * kListVectors >= 4 ? 2 : 4;
    constexpr int kColumns = Weights::kColumns;
    Row::V more[kSets][T][kListVectors];
    for_sums<T>([&](int t, int v) {
      SI_UNROLL
      for (int s = 0; s < kSets; ++s) more[s][t][v] = Row::zero();
    });
    auto step = [&](Row::V(&to)[T][kListVectors]) {
      const Weights weights(values);
      __builtin_prefetch(reinterpret_cast<const char*>(values) + kPrefetchBytes);
      SI_UNROLL
      for (int t = 0; t < T; ++t) weights.multiply(x + t * stride, offsets, to[t]);
      offsets += kColumns;
      values += kColumns * each;
    };
    int i = 0;
    for (; i + kSets * kColumns <= count; i += kSets * kColumns) {
      SI_UNROLL
      for (int s = 0; s < kSets; ++s) step(more[s]);
    }
    for (; i + kColumns <= count; i += kColumns) step(sum);
    if constexpr (kColumns == 2) {
      if (i < count) {
        const Weights weights(values);
        SI_UNROLL
        for (int t = 0; t < T; ++t) weights.first(x + t * stride, offsets, sum[t]);
        offsets += kColumns;
        values += kColumns * each;
      }
    }
    for_sums<T>([&](int t, int v) {
      SI_UNROLL
      for (int s = 0; s < kSets; ++s) sum[t][v] = Row::add(sum[t][v], more[s][t][v]);
    });
  }

  template <int T>
  static void finish_empty(const SpmmArgs& a, int64_t token, int64_t begin, int64_t rows) {
    for (int t = 0; t < T; ++t) {
      for (int64_t r = 0; r < rows; r += R) {
        finish(a, Row::zero(), token + t, begin + r, rows - r < R ? static_cast<int>(rows - r) : R);
      }
    }
  }
};

// sums [rows of a group][tokens] += its list, strip by strip; the same for all storages that become fp32.
template <class S>
struct ListStrips {
  using Vec = typename S::Vec;
  using Element = typename S::Element;
  using Payload = typename Step<S>::Payload;

  // Rows of a strip: sums, x and a weight fill the registers.
  static constexpr int strip_height() {
    if (Level::kRegisters < 32) return S::kSums > 1 ? 4 : 8;
    return S::kSums > 3 ? 4 : S::kSums > 1 ? 8 : 16;
  }

  template <int kStrip>
  static SI_INLINE void group(const Element* x, const uint16_t* offsets, const Payload* values, int64_t steps,
                              int64_t each, float* sums) {
    if constexpr (kStrip > 1) {
      if (each % kStrip != 0) return group<kStrip / 2>(x, offsets, values, steps, each, sums);
    }
    strip<kStrip, true>(x, offsets, values, steps, each, sums);
    for (int64_t row = kStrip; row < each; row += kStrip) {
      strip<kStrip, false>(x, offsets, values + row * Step<S>::kPositions, steps, each, sums + row * S::kTokens);
    }
  }

  template <int kStrip, bool kIsFirst>
  static void strip(const Element* x, const uint16_t* offsets, const Payload* values, int64_t steps, int64_t each,
                    float* sums) {
    constexpr int kColumns = Step<S>::kPositions;
    typename Vec::V sum[kStrip][S::kSums];
    SI_UNROLL
    for (int r = 0; r < kStrip; ++r) {
      SI_UNROLL
      for (int t = 0; t < S::kSums; ++t) sum[r][t] = Vec::load(sums + r * S::kTokens + t * Vec::L);
    }
    for (int64_t i = 0; i < steps; ++i, offsets += kColumns, values += kColumns * each) {
      typename Step<S>::X xv[S::kSums];
      Step<S>::load(x, Positions<kColumns>(offsets), xv);
      if constexpr (kIsFirst) __builtin_prefetch(reinterpret_cast<const char*>(values) + kPrefetchBytes);
      SI_UNROLL
      for (int r = 0; r < kStrip; ++r) {
        const auto weight = Step<S>::weight(values + r * kColumns);
        SI_UNROLL
        for (int t = 0; t < S::kSums; ++t) sum[r][t] = Step<S>::multiply(weight, xv[t], sum[r][t]);
      }
    }
    SI_UNROLL
    for (int r = 0; r < kStrip; ++r) {
      SI_UNROLL
      for (int t = 0; t < S::kSums; ++t) Vec::store(sums + r * S::kTokens + t * Vec::L, sum[r][t]);
    }
  }
};

template <class Weights>
struct GrouplistTiles : PackedPanels {
  using Payload = typename Weights::Payload;
  static constexpr TileMode kMode = Weights::kColumns == 2 ? TileMode::kPairs : TileMode::kFloat;
  static constexpr int kRows = 8;
  static constexpr bool kWidens = kMode == TileMode::kFloat && sizeof(Payload) < 4;

  // Widened weights of a group in a panel.
  static int64_t scratch_bytes(const PackingHeader* w) { return kWidens ? (w->panel + 1) * kListRows * 4 : 0; }

  // sums [rows of the split][tokens]
  template <class S>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const typename S::Element* x, float* sums,
                   int64_t, char* scratch) {
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t rows = split_rows[split + 1] - split_rows[split], each = list_rows(w->block_rows);
    const Cell& cell = section<Cell>(w, w->cells)[split * w->panels + panel];
    const uint16_t* counts = section<uint16_t>(w, w->counts) + cell.counts;
    const uint16_t* offsets = section<uint16_t>(w, w->offsets) + cell.offsets;
    const Payload* values = section<Payload>(w, w->values) + cell.values;
    using Strips = ListStrips<S>;
    constexpr int kColumns = Step<S>::kPositions;
    for (int64_t row = 0; row < rows; row += each, ++counts, sums += each * S::kTokens) {
      const int64_t steps = (*counts + kColumns - 1) / kColumns;
      if (steps == 0) continue;
      if constexpr (kWidens) {
        float* wide = reinterpret_cast<float*>(scratch);
        for (int64_t i = 0; i < steps * each; i += R) Row::store(wide + i, Row::load(values + i));
        Strips::template group<Strips::strip_height()>(x, offsets, wide, steps, each, sums);
      } else {
        Strips::template group<Strips::strip_height()>(x, offsets, values, steps, each, sums);
      }
      offsets += steps * kColumns;
      values += steps * kColumns * each;
    }
  }
};

}  // namespace
}  // namespace sparseinfer
