// Tiles of tokens (tiles-inl.h): rows of x are turned into columns, and sums back into rows of y, with G tokens at a
// time in registers.
#pragma once

#include "cpu/activation-inl.h"
#include "cpu/quantize-inl.h"
#include "cpu/types-inl.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {
namespace {

// Rows whose sums the epilogue turns at a time: 64 x 64 tokens x 4 bytes are half of L1.
constexpr int64_t kBlockRows = 128;

// Transposes move groups of G tokens at a time.
using Tr = Level::Transposer;
constexpr int G = Tr::L;

// Where G tokens of x start. Tokens past m repeat the last one; nothing reads their results.
template <class T>
SI_INLINE void token_rows(const SpmmArgs& a, int64_t token, int64_t column, const T* (&rows)[G]) {
  for (int i = 0; i < G; ++i) {
    const int64_t element = (token + i < a.m ? token + i : a.m - 1) * a.ldx + column;
    rows[i] = reinterpret_cast<const T*>(static_cast<const char*>(a.x) + element * dtype_bytes(a.dtype));
  }
}

// rows[kGroup tokens][columns] -> out[columns][kTokens], four bytes an element.
template <int kTokens, class T>
SI_INLINE void turn(const T* const (&rows)[G], int64_t columns, float* out) {
  constexpr int kGroup = kTokens < G ? kTokens : G;
  int64_t c = 0;
  for (; c + G <= columns; c += G, out += G * kTokens) Tr::template to_columns<kGroup>(rows, c, out, kTokens);
  for (; c < columns; ++c, out += kTokens) {
    for (int i = 0; i < kGroup; ++i) out[i] = widen(rows[i][c]);
  }
}

// The same for bf16 as it is.
template <int kTokens, class T>
SI_INLINE void turn(const T* const (&rows)[G], int64_t columns, uint16_t* out) {
  constexpr int kGroup = kTokens < G ? kTokens : G;
  int64_t c = 0;
  for (; c + G <= columns; c += G, out += G * kTokens) Tr::halves_to_columns(rows, c, out, kTokens);
  for (; c < columns; ++c, out += kTokens) {
    for (int i = 0; i < kGroup; ++i) out[i] = rows[i][c];
  }
}

// x[kTokens from `token` on, `columns` of type T from `first` on] -> out[columns][kTokens].
template <int kTokens, class T, class Out>
void pack_columns(const SpmmArgs& a, int64_t token, int64_t first, int64_t columns, Out* out) {
  for (int group = 0; group < kTokens; group += G) {
    const T* rows[G];
    token_rows(a, token + group, first, rows);
    turn<kTokens>(rows, columns, out + group);
  }
}

// The same for kernels that multiply bf16, which take x in bf16, a T a column or two, or round fp32 to it.
template <int kTokens, class T, class Out>
void pack_bf16(const SpmmArgs& a, int64_t token, int64_t first, int64_t columns, Out* out) {
  if (a.dtype == DType::kBF16) return pack_columns<kTokens, T>(a, token, first, columns, out);
  constexpr int64_t kColumns = 64, kEach = sizeof(T) / sizeof(BF16);
  for (int group = 0; group < kTokens; group += G) {
    const float* rows[G];
    token_rows(a, token + group, first, rows);
    for (int64_t c = 0; c < columns; c += kColumns / kEach) {
      const int64_t count = columns - c < kColumns / kEach ? columns - c : kColumns / kEach;
      BF16 values[G][kColumns];
      const T* rounded[G];
      for (int i = 0; i < G; ++i) {
        round_row(rows[i] + c * kEach, count * kEach, values[i]);
        rounded[i] = reinterpret_cast<const T*>(values[i]);
      }
      turn<kTokens>(rounded, count, out + c * kTokens + group);
    }
  }
}

// sums[rows][kTokens] -> y[tokens from `token` on, rows from `row` on] + bias, activated.
//
// Interleaving bf16 works in lanes of 128 bits: in vectors longer than that (kPairLanes > 0: their length) the sums of
// 8 tokens are 4 in one vector and 4 in the next.
// Sums of bytes, of a tile with Scales, become real numbers here, where vectors hold rows of one token.
struct NoScales {};
template <int kTokens, int kPairLanes, class T, class Scales>
void finish_tile(const SpmmArgs& a, const float* sums, int64_t row, int64_t rows, int64_t token, const Scales& scales) {
  using Whole = typename Level::template Finisher<kTokens>;
  using F = typename Whole::Floats;
  constexpr bool kScaled = sizeof(Scales) > 1;
  constexpr int kGroup = kTokens < G ? kTokens : G;
  constexpr int kPair = kPairLanes > 0 ? 2 * kPairLanes : 1, kHalf = kPairLanes > 0 ? kPairLanes : G / 2;
  const int64_t ldy = a.ldy, m = a.m;  // locals: stores to y could alias the arguments
  const Activation activation = a.activation;
  const float* row_scales = section<float>(a.w, a.w->scales) + row;
  const float* row_sums = section<float>(a.w, a.w->row_sums) + row;
  // Blocks of rows that stay in L1 for all their tokens; inside one, G tokens at a time are written along, because
  // the rows of y often lie at multiples of 4 KB, which share one set of the cache.
  for (int64_t block = 0; block < rows; block += kBlockRows) {
    const int64_t block_end = rows - block < kBlockRows ? rows : block + kBlockRows;
    for (int group = 0; group < kTokens && token + group < m; group += kGroup) {
      const int64_t left = m - token - group;
      const int tokens = left < kGroup ? static_cast<int>(left) : kGroup;
      T* y = static_cast<T*>(a.y) + (token + group) * ldy + row;
      const int first = kPairLanes > 0 ? group - group % kPair + group % kPair / 2 : group;
      const float* from = sums + first + block * kTokens;
      for (int64_t r = block; r < block_end; r += F::L, from += F::L * kTokens) {
        const int count = rows - r < F::L ? static_cast<int>(rows - r) : F::L;
        typename F::V v[kGroup];
        F::template to_rows<kGroup, kHalf>(from, kTokens, v);  // scratch has rows to spare
        if constexpr (kScaled) {
          const typename Whole::V row_sum = Whole::bits(F::load_partial(row_sums + r, count));
          const typename F::V row_scale = F::load_partial(row_scales + r, count);
          SI_UNROLL
          for (int i = 0; i < kGroup; ++i) {
            const int t = group + i;
            v[i] = Whole::real(Whole::bits(v[i]), row_sum, Whole::set1(scales.zeros[t]), row_scale,
                               F::set1(scales.scales[t]));
          }
        }
        if (a.bias) {
          const typename F::V b = load_bias<F, T>(a, row + r, count);
          SI_UNROLL
          for (int i = 0; i < kGroup; ++i) v[i] = F::add(v[i], b);
        }
        activate_all<F>(v, activation);
        if (tokens == kGroup && count == F::L) {
          SI_UNROLL
          for (int i = 0; i < kGroup; ++i) F::store(y + i * ldy + r, v[i]);
        } else {
          SI_UNROLL
          for (int i = 0; i < kGroup; ++i) {
            if (i < tokens) F::store_partial(y + i * ldy + r, v[i], count);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparseinfer
