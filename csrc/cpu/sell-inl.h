// sell: sliced ELL with sliding windows, for few tokens. The 16 rows of a slice step together through windows of x
// that sit in registers: a step takes one byte index per weight, looks x up by a register permute and multiplies. No
// gathers, and no branch but the end of a slice.
//
// Every window starts at the leftmost column that any of the 16 rows has not consumed yet, so a row that runs ahead
// waits at most until the others catch up; with windows cut at fixed columns the rows would wait at every one of
// them. The last position of a window holds zero, and fillings point there: they never meet x.
//
// counts: uint32 windows per slice; rows: uint32 first column of each window; offsets: 16 bytes a step (pair storage
// 32, two a row), position in the window; values: as many payloads. A window serves `steps` steps. Registers (AVX-512):
// 4 x T of x for windows of 64, 2 x T for 32 and for pairs of bf16; sums; index; values.
#pragma once

#include "cpu/rows-inl.h"

namespace sparseinfer {
namespace {

constexpr int kGroups = kSliceRows / R;  // vectors per slice

// Looks up fp32; payloads are widened.
template <class T>
struct SellWidened {
  using Element = float;
  using Payload = T;
  static constexpr int kPerRow = 1;  // payloads of a row in one step
  template <int W>
  using Window = Level::Window<W>;

  template <int W>
  struct Weights {
    typename Window<W>::Index at;
    Row::V values;
    Weights(const uint8_t* offsets, const T* payloads)
        : at(Window<W>::index(offsets)), values(Row::load(payloads)) {}
    SI_INLINE Row::V multiply(const Window<W>& x, Row::V sum) const { return Row::fma(values, x.look_up(at), sum); }
  };
};

// Looks up bf16, two columns a row.
struct SellPairs {
  using Element = uint16_t;
  using Payload = uint16_t;
  static constexpr int kPerRow = 2;
  template <int>
  using Window = Level::PairWindow;

  template <int>
  struct Weights {
    Level::PairWindow::Index at;
    Row::P values;
    Weights(const uint8_t* offsets, const uint16_t* payloads)
        : at(Level::PairWindow::index(offsets)), values(Row::load_pairs(payloads)) {}
    SI_INLINE Row::V multiply(const Level::PairWindow& x, Row::V sum) const {
      return Row::dot(sum, x.look_up(at), values);
    }
  };
};

template <class Kind>
struct Sell {
  using Element = typename Kind::Element;
  using Payload = typename Kind::Payload;
  static constexpr int kMaxTokens = Level::kSellTokens;
  static constexpr int64_t kScratchBytes = 0;

  template <int T>
  static void tokens(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token, char*) {
    if (Kind::kPerRow == 2 || a.w->window == 64) return with_steps<T, 64>(a, split, x, stride, token);
    return with_steps<T, 32>(a, split, x, stride, token);
  }

  template <int T, int W>
  static SI_INLINE void with_steps(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token) {
    if (a.w->steps == 2) return slices<T, W, 2>(a, split, x, stride, token);
    if (a.w->steps == 4) return slices<T, W, 4>(a, split, x, stride, token);
    return slices<T, W, 8>(a, split, x, stride, token);
  }

  template <int T, int W, int kSteps>
  static void slices(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token) {
    // Enough independent sums to hide the latency of the multiply.
    constexpr int kSets = T * kGroups >= 4 ? 1 : T * kGroups >= 2 ? 2 : kSteps < 4 ? kSteps : 4;
    constexpr int kStepPayloads = kSliceRows * Kind::kPerRow, kGroupPayloads = R * Kind::kPerRow;
    const PackingHeader* w = a.w;
    if (w->panels == 0) return empty<T>(a, split, token);
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const Cell& cell = section<Cell>(w, w->cells)[split];
    const uint32_t* counts = section<uint32_t>(w, w->counts) + cell.counts;
    const uint32_t* first = section<uint32_t>(w, w->rows) + cell.rows;
    const uint8_t* offsets = section<uint8_t>(w, w->offsets) + cell.offsets;
    const Payload* values = section<Payload>(w, w->values) + cell.values;

    for (int64_t row = split_rows[split]; row < split_rows[split + 1]; row += kSliceRows, ++counts) {
      Row::V sum[kSets][T][kGroups];
      SI_UNROLL
      for (int s = 0; s < kSets; ++s) {
        SI_UNROLL
        for (int t = 0; t < T; ++t) {
          SI_UNROLL
          for (int g = 0; g < kGroups; ++g) sum[s][t][g] = Row::zero();
        }
      }
      for (const uint32_t* end = first + *counts; first < end; ++first) {
        typename Kind::template Window<W> window[T];
        SI_UNROLL
        for (int t = 0; t < T; ++t) window[t].load(x + t * stride + *first);
        SI_UNROLL
        for (int step = 0; step < kSteps; ++step, offsets += kStepPayloads, values += kStepPayloads) {
          SI_UNROLL
          for (int g = 0; g < kGroups; ++g) {
            const typename Kind::template Weights<W> weights(offsets + g * kGroupPayloads, values + g * kGroupPayloads);
            SI_UNROLL
            for (int t = 0; t < T; ++t) {
              Row::V& to = sum[step % kSets][t][g];
              to = weights.multiply(window[t], to);
            }
          }
        }
      }
      for (int g = 0; g < kGroups; ++g) {
        const int64_t at = row + g * R, left = split_rows[split + 1] - at;
        if (left <= 0) break;
        SI_UNROLL
        for (int t = 0; t < T; ++t) {
          Row::V total = sum[0][t][g];
          SI_UNROLL
          for (int s = 1; s < kSets; ++s) total = Row::add(total, sum[s][t][g]);
          finish(a, total, token + t, at, left < R ? static_cast<int>(left) : R);
        }
      }
    }
  }

  // k = 0: nothing but the bias.
  template <int T>
  static void empty(const SpmmArgs& a, int64_t split, int64_t token) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    for (int64_t row = split_rows[split]; row < split_rows[split + 1]; row += R) {
      const int64_t left = split_rows[split + 1] - row;
      for (int t = 0; t < T; ++t) finish(a, Row::zero(), token + t, row, left < R ? static_cast<int>(left) : R);
    }
  }
};

}  // namespace
}  // namespace sparseinfer
