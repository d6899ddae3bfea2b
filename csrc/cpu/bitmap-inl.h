// Kernel body for `bitmap`: one bit per weight and the stored values, the fewest bytes to read from memory. A vector of
// weights is expanded in registers once and multiplied for up to 8 tokens.
//
// rows: uint64 masks [n][ceil(k / 64)], bit c set where column c is stored; values: row by row. Values are read a
// vector at a time, so up to 64 bytes past the last one. Weights that are not stored never meet a NaN or an infinity.
//
// Registers: T sums, the expanded weights; x is read from L1 as an operand. From 4 tokens on loads of x are what binds:
// where x is finite, zeros may be multiplied too, and two rows share each load.
#pragma once

#include "cpu/rowlist-inl.h"
#include "cpu/rows-inl.h"

namespace sparseinfer {
namespace {

template <class T>
struct BitmapWidened {
  using Element = float;
  using Payload = T;
  static constexpr int kColumns = R;
  static Row::Mask mask(const uint64_t* word, int part) { return Row::mask(word, part); }
  struct Weights {
    Row::V values;
    Row::Mask mask;
    Weights(const T* payloads, Row::Mask stored) : values(Row::expand(Row::load(payloads), stored)), mask(stored) {}
    SI_INLINE Row::V multiply(const float* x, Row::V sum) const { return Row::fma_masked(mask, values, x, sum); }
    SI_INLINE Row::V multiply_all(Row::V x, Row::V sum) const { return Row::fma(values, x, sum); }
  };
  static SI_INLINE Row::V load(const float* x) { return Row::load(x); }
};

struct BitmapPairs {
  using Element = uint16_t;
  using Payload = uint16_t;
  static constexpr int kColumns = 2 * R;
  static Row::PairMask mask(const uint64_t* word, int part) { return Row::pair_mask(word, part); }
  struct Weights {
    Row::P values;
    Row::PairMask mask;
    Weights(const uint16_t* payloads, Row::PairMask stored)
        : values(Row::expand_pairs(payloads, stored)), mask(stored) {}
    SI_INLINE Row::V multiply(const uint16_t* x, Row::V sum) const {
      return Row::dot(sum, Row::load_pairs_masked(x, mask), values);
    }
    SI_INLINE Row::V multiply_all(Row::P x, Row::V sum) const { return Row::dot(sum, x, values); }
  };
  static SI_INLINE Row::P load(const uint16_t* x) { return Row::load_pairs(x); }
};

// Several tokens of many columns do not stay in L1. Then a few rows together walk through x a panel of columns at a
// time, and their sums wait in memory between panels, in the same order as without.
template <class Kind>
struct Bitmap {
  using Element = typename Kind::Element;
  using Payload = typename Kind::Payload;
  static constexpr bool kAsksFinite = Level::kRegisters >= 32;  // two rows of sums have to fit
  static constexpr int kMaxTokens = 8;
  static constexpr int kColumns = Kind::kColumns, kParts = kMaskColumns / kColumns;
  static constexpr int64_t kBlockRows = 16;
  static constexpr int64_t kPanelBytes = 24 << 10;  // of x, beside the sums and what is read of the weights
  static constexpr int64_t kSumFloats = kBlockRows * kMaxTokens * R;
  static constexpr int64_t kScratchBytes = (kMaxTokens * kMaxSplitRows + kSumFloats) * 4;

  // Sets of sums for T tokens: one would be limited by the latency of the multiply-add.
  static constexpr int sets(int tokens) { return tokens >= 4 ? 1 : kParts < 4 / tokens ? kParts : 4 / tokens; }
  template <int T>
  using Sums = Row::V[sets(T)][T];

  template <int T>
  static void tokens(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token, char* scratch) {
    const PackingHeader* w = a.w;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t begin = split_rows[split], rows = split_rows[split + 1] - begin;
    const int64_t words = mask_words(w->k);
    const uint64_t* masks = section<uint64_t>(w, w->rows) + begin * words;
    const Payload* values = section<Payload>(w, w->values);
    if (words > 0) values += section<Cell>(w, w->cells)[split].values;
    float* out = reinterpret_cast<float*>(scratch);
    float* waiting = out + kMaxTokens * kMaxSplitRows;

    constexpr int64_t kWordBytes = T * kMaskColumns * static_cast<int64_t>(sizeof(Element));
    constexpr int64_t kPanelWords = kPanelBytes / kWordBytes;
    const int64_t panel_words = words <= kPanelWords + kPanelWords / 2 ? words : kPanelWords;
    bool shares = kAsksFinite && T >= 4 && words > 0;
    for (int t = 0; shares && t < T; ++t) shares = finite_flags(a, sizeof(Element))[token + t] != 0;
    if (panel_words == words && !shares) {
      for (int64_t row = 0; row < rows; ++row, masks += words) {
        Sums<T> sums[1];
        clear<T>(sums[0]);
        walk<T>(masks, words, words, &values, kPrefetchBytes, x, stride, sums);
        put<T>(sums[0], out + row);
      }
    } else {
      for (int64_t row = 0; row < rows; row += kBlockRows, masks += kBlockRows * words) {
        const int64_t here = rows - row < kBlockRows ? rows - row : kBlockRows;
        values = block<T>(masks, words, panel_words, here, shares, values, x, stride, waiting, out + row);
      }
    }
    for (int t = 0; t < T; ++t) finish_rows(a, out + t * kMaxSplitRows, token + t, begin, rows);
  }

  // out[t][row] of a block of rows; returns the values behind them.
  template <int T>
  static const Payload* block(const uint64_t* masks, int64_t words, int64_t panel_words, int64_t rows, bool shares,
                              const Payload* values, const Element* x, int64_t stride, float* waiting, float* out) {
    const Payload *next[kBlockRows], *start = values;
    for (int64_t r = 0; r < rows; ++r) {
      next[r] = values;
      for (int64_t i = 0; i < words; ++i) values += __builtin_popcountll(masks[r * words + i]);
    }
    // What the next block reads lies directly behind what this one reads.
    const int64_t ahead = (values - start) * static_cast<int64_t>(sizeof(Payload));
    constexpr int64_t kRowFloats = sets(T) * T * R;
    for (int64_t first = 0; first < words; first += panel_words) {
      const int64_t here = words - first < panel_words ? words - first : panel_words;
      auto multiply = [&](int64_t r, auto together) {
        constexpr int kRows = decltype(together)::value;
        Sums<T> sums[kRows];
        for (int i = 0; i < kRows; ++i) {
          const float* from = waiting + (r + i) * kRowFloats;
          if (first == 0) {
            clear<T>(sums[i]);
          } else {
            each<T>([&](int s, int t) { sums[i][s][t] = Row::load(from + (s * T + t) * R); });
          }
        }
        walk<T>(masks + r * words + first, words, here, next + r, ahead, x + first * kMaskColumns, stride, sums);
        for (int i = 0; i < kRows; ++i) {
          float* to = waiting + (r + i) * kRowFloats;
          if (first + here == words) {
            put<T>(sums[i], out + r + i);
          } else {
            each<T>([&](int s, int t) { Row::store(to + (s * T + t) * R, sums[i][s][t]); });
          }
        }
      };
      int64_t r = 0;
      if constexpr (kAsksFinite && T >= 4) {
        for (; shares && r + 2 <= rows; r += 2) multiply(r, Int<2>{});
      }
      for (; r < rows; ++r) multiply(r, Int<1>{});
    }
    return values;
  }

  // sums += the columns of these words of some rows, whose masks lie `row_words` apart; `next`: their values, which are
  // moved on. What lies `ahead` bytes behind what is read is fetched. More rows than one: x is finite.
  template <int T, int kRows>
  static SI_INLINE void walk(const uint64_t* masks, int64_t row_words, int64_t words, const Payload** next,
                             int64_t ahead, const Element* x, int64_t stride, Sums<T> (&sums)[kRows]) {
    constexpr int kSets = sets(T);
    const Payload* values[kRows];
    SI_UNROLL
    for (int i = 0; i < kRows; ++i) values[i] = next[i];
    for (int64_t word = 0; word < words; ++word, x += kMaskColumns) {
      // Were it known to stay, all its multiples would be kept, most of them in memory, and loads are what binds.
      int64_t step = stride;
      __asm__("" : "+r"(step));
      SI_UNROLL
      for (int i = 0; i < kRows; ++i) __builtin_prefetch(reinterpret_cast<const char*>(values[i]) + ahead, 0, 2);
      SI_UNROLL
      for (int part = 0; part < kParts; ++part) {
        auto weights = [&](int i) __attribute__((always_inline)) {
          constexpr uint64_t kOnes = (uint64_t{1} << kColumns) - 1;
          const uint64_t* mask = masks + i * row_words + word;
          const typename Kind::Weights expanded(values[i], Kind::mask(mask, part));
          values[i] += __builtin_popcountll(*mask >> (part * kColumns) & kOnes);
          return expanded;
        };
        if constexpr (kRows == 1) {
          const auto own = weights(0);
          SI_UNROLL
          for (int t = 0; t < T; ++t) {
            Row::V& to = sums[0][part % kSets][t];
            to = own.multiply(x + t * step + part * kColumns, to);
          }
        } else {
          static_assert(kRows == 2);
          const auto first = weights(0), second = weights(1);
          SI_UNROLL
          for (int t = 0; t < T; ++t) {
            const auto xv = Kind::load(x + t * step + part * kColumns);
            sums[0][part % kSets][t] = first.multiply_all(xv, sums[0][part % kSets][t]);
            sums[1][part % kSets][t] = second.multiply_all(xv, sums[1][part % kSets][t]);
          }
        }
      }
    }
    SI_UNROLL
    for (int i = 0; i < kRows; ++i) next[i] = values[i];
  }

  template <int T, class Do>
  static SI_INLINE void each(Do&& act) {
    constexpr int kSets = sets(T);
    SI_UNROLL
    for (int s = 0; s < kSets; ++s) {
      SI_UNROLL
      for (int t = 0; t < T; ++t) act(s, t);
    }
  }

  template <int T>
  static SI_INLINE void clear(Sums<T>& sums) {
    each<T>([&](int s, int t) { sums[s][t] = Row::zero(); });
  }

  template <int T>
  static SI_INLINE void put(const Sums<T>& sums, float* out) {
    constexpr int kSets = sets(T);
    SI_UNROLL
    for (int t = 0; t < T; ++t) {
      Row::V total = sums[0][t];
      SI_UNROLL
      for (int s = 1; s < kSets; ++s) total = Row::add(total, sums[s][t]);
      out[t * kMaxSplitRows] = Row::sum(total);
    }
  }
};

// The same packing for many tokens: within a panel the masks of a row become a list of positions, and from there on it
// is a rowlist. Decoding is shared by all tokens of a tile, 64 where there are as many.
//
// Scratch: int64 cursor of each row of the chunk, where its next value lies; the positions, and for widened storages
// the values, of one row in one panel.
template <class T, TileMode kMode_>
struct BitmapTile {
  static constexpr TileMode kMode = kMode_;
  static constexpr bool kForImages = false;
  static constexpr int kRows = 1;
  static constexpr int64_t kPanel = kMode == TileMode::kPairs ? 384 : 128;
  static constexpr int64_t kRoom = kPanel + 2 * kMaskColumns;  // vectors are written whole, and a filling may follow
  static constexpr bool kWidened = kMode == TileMode::kFloat && sizeof(T) < 4;

  static int64_t panel(const PackingHeader*) { return kPanel; }
  static int64_t scratch_bytes(const PackingHeader*) { return kChunkRows * 8 + kRoom * 2 + kRoom * 4; }

  template <class S>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const typename S::Element* x, float* sums,
                   int64_t chunk_row, char* scratch) {
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t begin = split_rows[split], rows = split_rows[split + 1] - begin, words = mask_words(w->k);
    const uint64_t* masks = section<uint64_t>(w, w->rows) + begin * words;
    const T* values = section<T>(w, w->values) + section<Cell>(w, w->cells)[split].values;
    int64_t* cursors = reinterpret_cast<int64_t*>(scratch) + chunk_row;
    uint16_t* positions = reinterpret_cast<uint16_t*>(scratch + kChunkRows * 8);
    float* widened = reinterpret_cast<float*>(positions + kRoom);
    if (panel == 0) start(masks, rows, words, cursors);

    const int64_t first = panel * kPanel / kMaskColumns, left = words - first;
    const int64_t here = left < kPanel / kMaskColumns ? left : kPanel / kMaskColumns;
    for (int64_t r = 0; r < rows; ++r, sums += S::kTokens) {
      int count = 0;
      for (int64_t i = 0; i < here; ++i) {
        count += Row::positions(masks[r * words + first + i], static_cast<int>(i * kMaskColumns), positions + count);
      }
      if (count == 0) continue;
      positions[count] = kPanel;
      const T* stored = values + cursors[r];
      cursors[r] += count;
      if constexpr (kWidened) {
        for (int i = 0; i < count; i += R) Row::store(widened + i, Row::load(stored + i));
        Rowlist<kMode, float>::template row<S, false>(x, positions, widened, count, sums);
      } else {
        Rowlist<kMode, T>::template row<S, false>(x, positions, stored, count, sums);
      }
    }
  }

  static void start(const uint64_t* masks, int64_t rows, int64_t words, int64_t* cursors) {
    int64_t at = 0;
    for (int64_t r = 0; r < rows; ++r) {
      cursors[r] = at;
      for (int64_t i = 0; i < words; ++i) at += __builtin_popcountll(*masks++);
    }
  }
};

using BitmapTileF32 = BitmapTile<float, TileMode::kFloat>;
using BitmapTileWBF16 = BitmapTile<BF16, TileMode::kFloat>;
using BitmapTileWF16 = BitmapTile<F16, TileMode::kFloat>;
using BitmapTileWI8 = BitmapTile<int8_t, TileMode::kFloat>;
using BitmapTileBF16 = BitmapTile<uint16_t, TileMode::kPairs>;

}  // namespace
}  // namespace sparseinfer
