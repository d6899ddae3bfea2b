// Kernel body for `sell`: sliced ELL with sliding windows, for few tokens. The 16 rows of a slice advance together
// through windows of x in registers: a step reads one byte index per weight, looks x up by a register permute and
// multiplies. There are no gathers, and the only branch is at the end of a slice.
//
// Every window starts at the leftmost column that any of the 16 rows has not consumed yet, so a row that runs ahead
// waits at most until the others catch up; with windows cut at fixed columns the rows would wait at every one of
// them. The last position of a window holds zero, and padding refers to it, so that it is never multiplied by x.
//
// counts: uint32 windows per slice; rows: uint32 first column of each window; offsets: 16 bytes per step (pair
// storage 32, two per row; i8 64), position in the window; values: one payload for each. A window serves `steps` steps.
// Registers (AVX-512): 4 x T of x for windows of 64, 2 x T for 32 and for pairs of bf16; sums; index; values. A level
// has fast paths for two window widths and three numbers of steps; for packings made for other levels it reads windows
// from memory.
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
  using Sum = Row;
  static constexpr int kPerRow = 1;  // payloads of a row in one step
  using Any = Level::AnyWindow;
  template <int W>
  using Window = Level::Window<W>;
  static constexpr int kWindows[2] = {Level::kWindows[0], Level::kWindows[1]};
  static constexpr const int (&kSteps)[3] = Level::kSteps;

  template <int W>
  struct Weights {
    typename Window<W>::Index at;
    Row::V values;
    Weights(const uint8_t* offsets, const T* payloads) : at(Window<W>::index(offsets)), values(Row::load(payloads)) {}
    SI_INLINE Row::V multiply(const Window<W>& x, Row::V sum) const { return Row::fma(values, x.look_up(at), sum); }
  };
  static Row::V multiply(const Any& x, const uint8_t* offsets, const T* payloads, Row::V sum) {
    return Row::fma(Row::load(payloads), x.look_up(offsets), sum);
  }
};

// Looks up bf16, two columns a row.
struct SellPairs {
  using Element = uint16_t;
  using Payload = uint16_t;
  using Sum = Row;
  static constexpr int kPerRow = 2;
  using Any = Level::AnyPairWindow;
  template <int W>
  using Window = Level::PairWindow<W>;
  static constexpr int kWindows[2] = {Level::kPairWindow, 0};
  static constexpr const int (&kSteps)[3] = Level::kSteps;

  template <int W>
  struct Weights {
    typename Window<W>::Index at;
    Row::P values;
    Weights(const uint8_t* offsets, const uint16_t* payloads)
        : at(Window<W>::index(offsets)), values(Row::load_pairs(payloads)) {}
    SI_INLINE Row::V multiply(const Window<W>& x, Row::V sum) const { return Row::dot(sum, x.look_up(at), values); }
  };
  static Row::V multiply(const Any& x, const uint8_t* offsets, const uint16_t* payloads, Row::V sum) {
    return Row::dot(sum, x.look_up(offsets), Row::load_pairs(payloads));
  }
};

// Looks up bytes, four columns a row.
struct SellQuads {
  using Element = uint8_t;
  using Payload = int8_t;
  using Sum = Ints;
  static constexpr int kPerRow = 4;
  template <int W>
  using Window = Level::ByteWindow<W>;
  static constexpr int kWindows[2] = {Level::kByteWindow, 0};
  static constexpr const int (&kSteps)[3] = Level::kByteSteps;

  struct Any {
    const uint8_t* x;
    int last;
  };
  template <int W>
  struct Weights {
    typename Window<W>::Index at;
    Ints::W values;
    Weights(const uint8_t* offsets, const int8_t* payloads)
        : at(Window<W>::index(offsets)), values(Ints::weights(Ints::load_bytes(payloads))) {}
    SI_INLINE Ints::V multiply(const Window<W>& x, Ints::V sum) const { return Ints::dot(sum, x.look_up(at), values); }
  };
  static Ints::V multiply(const Any& x, const uint8_t* offsets, const int8_t* payloads, Ints::V sum) {
    uint8_t bytes[4 * R];
    for (int i = 0; i < 4 * R; ++i) bytes[i] = offsets[i] == x.last ? uint8_t{0} : x.x[offsets[i]];
    return Ints::dot(sum, Ints::load_bytes(bytes), Ints::weights(Ints::load_bytes(payloads)));
  }
};

template <class Kind>
struct Sell {
  using Element = typename Kind::Element;
  using Payload = typename Kind::Payload;
  using Sum = typename Kind::Sum;
  static constexpr int kMaxTokens = Level::kSellTokens;
  static constexpr int64_t kScratchBytes = 0;

  template <int T>
  static void tokens(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token, char*) {
    const bool fast = with_window<T, Kind::kWindows[0]>(a, split, x, stride, token) ||
                      with_window<T, Kind::kWindows[1]>(a, split, x, stride, token);
    if (fast) return;
    for (int t = 0; t < T; ++t) any(a, split, x + t * stride, token + t);
  }

  // Whether x and the sums of T tokens leave registers for an index, weights and what they need.
  template <int T, int W>
  static constexpr bool fits() {
    constexpr int kWindowRegisters = W * static_cast<int>(sizeof(Element)) / (R * 4);
    return T == 1 || T * (kWindowRegisters + kGroups) + 4 <= Level::kRegisters;
  }

  template <int T, int W>
  static SI_INLINE bool with_window(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token) {
    if constexpr (W > 0 && !fits<T, W>()) {
      return with_window<T / 2, W>(a, split, x, stride, token) &&
             with_window<T - T / 2, W>(a, split, x + T / 2 * stride, stride, token + T / 2);
    } else if constexpr (W > 0) {
      return a.w->window == W && (with_steps<T, W, Kind::kSteps[0]>(a, split, x, stride, token) ||
                                  with_steps<T, W, Kind::kSteps[1]>(a, split, x, stride, token) ||
                                  with_steps<T, W, Kind::kSteps[2]>(a, split, x, stride, token));
    }
    return false;
  }

  template <int T, int W, int kSteps>
  static SI_INLINE bool with_steps(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token) {
    if (a.w->steps != kSteps) return false;
    slices<T, W, kSteps>(a, split, x, stride, token);
    return true;
  }

  // Where the streams of a split start.
  struct Streams {
    const uint32_t* counts;
    const uint32_t* first;
    const uint8_t* offsets;
    const Payload* values;
    Streams(const PackingHeader* w, int64_t split) {
      const Cell none{};
      const Cell& cell = w->panels > 0 ? section<Cell>(w, w->cells)[split] : none;
      counts = section<uint32_t>(w, w->counts) + cell.counts;
      first = section<uint32_t>(w, w->rows) + cell.rows;
      offsets = section<uint8_t>(w, w->offsets) + cell.offsets;
      values = section<Payload>(w, w->values) + cell.values;
    }
  };

  template <int T, int W, int kSteps>
  static void slices(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token) {
    // Enough independent sums to hide the latency of the multiply.
    constexpr int kSets = T * kGroups >= 4 ? 1 : T * kGroups >= 2 ? 2 : kSteps < 4 ? kSteps : 4;
    constexpr int kStepPayloads = kSliceRows * Kind::kPerRow, kGroupPayloads = R * Kind::kPerRow;
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    auto [counts, first, offsets, values] = Streams(a.w, split);

    for (int64_t row = split_rows[split]; row < split_rows[split + 1]; row += kSliceRows, ++counts) {
      typename Sum::V sum[kSets][T][kGroups];
      SI_UNROLL
      for (int s = 0; s < kSets; ++s) {
        SI_UNROLL
        for (int t = 0; t < T; ++t) {
          SI_UNROLL
          for (int g = 0; g < kGroups; ++g) sum[s][t][g] = Sum::zero();
        }
      }
      const uint32_t* end = first + (a.w->panels > 0 ? *counts : 0);
      for (; first < end; ++first) {
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
              typename Sum::V& to = sum[step % kSets][t][g];
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
          typename Sum::V total = sum[0][t][g];
          SI_UNROLL
          for (int s = 1; s < kSets; ++s) total = Sum::add(total, sum[s][t][g]);
          finish_sum(a, total, token + t, at, left);
        }
      }
    }
  }

  static SI_INLINE void finish_sum(const SpmmArgs& a, typename Sum::V sum, int64_t token, int64_t row, int64_t left) {
    const int count = left < R ? static_cast<int>(left) : R;
    if constexpr (sizeof(Element) == 1) {
      const auto* scales = reinterpret_cast<const TokenScale*>(a.workspace + Rows<Sell>::x_bytes(a));
      finish(a, real_rows(a.w, sum, scales[token], row, count), token, row, count);
    } else {
      finish(a, sum, token, row, count);
    }
  }

  // One token, any window and any number of steps.
  static void any(const SpmmArgs& a, int64_t split, const Element* x, int64_t token) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    auto [counts, first, offsets, values] = Streams(a.w, split);
    for (int64_t row = split_rows[split]; row < split_rows[split + 1]; row += kSliceRows, ++counts) {
      typename Sum::V sum[kGroups];
      for (int g = 0; g < kGroups; ++g) sum[g] = Sum::zero();
      const uint32_t* end = first + (a.w->panels > 0 ? *counts : 0);
      for (; first < end; ++first) {
        const typename Kind::Any window{x + *first, static_cast<int>(a.w->window) - 1};
        for (int64_t step = 0; step < a.w->steps * kGroups; ++step) {
          typename Sum::V& to = sum[step % kGroups];
          to = Kind::multiply(window, offsets, values, to);
          offsets += R * Kind::kPerRow;
          values += R * Kind::kPerRow;
        }
      }
      for (int g = 0; g < kGroups; ++g) {
        const int64_t at = row + g * R, left = split_rows[split + 1] - at;
        if (left > 0) finish_sum(a, sum[g], token, at, left);
      }
    }
  }
};

}  // namespace
}  // namespace sparseinfer
