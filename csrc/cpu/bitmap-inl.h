// bitmap: one bit per weight and the stored values, the fewest bytes for a weight that comes from memory. A vector of
// weights is expanded in registers once and multiplied for up to 8 tokens.
//
// rows: uint64 masks [n][ceil(k / 64)], bit c set where column c is stored; values: row by row. Values are read a
// vector at a time, so up to 64 bytes behind the last one. Lanes that are not stored never meet x. Registers: T sums,
// the expanded weights; x is an operand from L1.
#pragma once

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

}  // namespace
}  // namespace sparseinfer
