// Kernel body for `bitmap`: one bit per weight and the stored values, the fewest bytes to read from memory. A vector of
// weights is expanded in registers once and multiplied for up to 8 tokens.
//
// rows: uint64 masks [n][ceil(k / 64)], bit c set where column c is stored; values: row by row. Values are read a
// vector at a time, so up to 64 bytes past the last one. Weights that are not stored are never multiplied by x.
// Registers: T sums, the expanded weights; x is read from L1 as an operand.
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
  };
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
  };
};

template <class Kind>
struct Bitmap {
  using Element = typename Kind::Element;
  using Payload = typename Kind::Payload;
  static constexpr int kMaxTokens = 8;
  static constexpr int64_t kScratchBytes = kMaxTokens * kMaxSplitRows * 4;
  static constexpr int kColumns = Kind::kColumns, kParts = kMaskColumns / kColumns;

  template <int T>
  static void tokens(const SpmmArgs& a, int64_t split, const Element* x, int64_t stride, int64_t token, char* scratch) {
    constexpr int kSets = T >= 4 ? 1 : kParts < 4 / T ? kParts : 4 / T;
    const PackingHeader* w = a.w;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t begin = split_rows[split], rows = split_rows[split + 1] - begin;
    const int64_t words = mask_words(w->k);
    const uint64_t* masks = section<uint64_t>(w, w->rows) + begin * words;
    const Payload* values = section<Payload>(w, w->values);
    if (words > 0) values += section<Cell>(w, w->cells)[split].values;
    float* out = reinterpret_cast<float*>(scratch);

    for (int64_t row = 0; row < rows; ++row) {
      Row::V sum[kSets][T];
      SI_UNROLL
      for (int s = 0; s < kSets; ++s) {
        SI_UNROLL
        for (int t = 0; t < T; ++t) sum[s][t] = Row::zero();
      }
      const Element* from = x;
      for (int64_t word = 0; word < words; ++word, ++masks, from += kMaskColumns) {
        SI_UNROLL
        for (int part = 0; part < kParts; ++part) {
          constexpr uint64_t kOnes = (uint64_t{1} << kColumns) - 1;
          const typename Kind::Weights weights(values, Kind::mask(masks, part));
          values += __builtin_popcountll(*masks >> (part * kColumns) & kOnes);
          SI_UNROLL
          for (int t = 0; t < T; ++t) {
            Row::V& to = sum[part % kSets][t];
            to = weights.multiply(from + t * stride + part * kColumns, to);
          }
        }
      }
      SI_UNROLL
      for (int t = 0; t < T; ++t) {
        Row::V total = sum[0][t];
        SI_UNROLL
        for (int s = 1; s < kSets; ++s) total = Row::add(total, sum[s][t]);
        out[t * kMaxSplitRows + row] = Row::sum(total);
      }
    }
    for (int t = 0; t < T; ++t) finish_rows(a, out + t * kMaxSplitRows, token + t, begin, rows);
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
  static constexpr bool kReadsPlanes = false;
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
