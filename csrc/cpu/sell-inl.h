// sell: sliced ELL with the look-up in registers, for few tokens. 16 rows step together through a chunk of 64 columns
// whose x values sit in registers; a step decodes 16 byte indices once, then looks x up and multiplies for up to 4
// tokens. No gathers where the level has a register permute over 64 values.
//
// counts: steps, one byte per (slice, chunk); offsets: 16 bytes a step, column within the chunk; rows: a mask a step,
// bit r set where row r stores a value, so that padding never meets x; values: 16 a step. Registers (AVX-512): 4 x T of
// x, T accumulators, index, values.
#pragma once

#include "cpu/activation-inl.h"
#include "cpu/tiles-inl.h"

namespace sparseinfer {
namespace {

struct Sell {
  static constexpr int kGroups = kSliceRows / L;  // vectors per slice

  static int64_t workspace_bytes(const SpmmArgs&) { return 0; }
  static int64_t scratch_bytes(const SpmmArgs&) { return 0; }
  static int64_t prepare_items(const SpmmArgs&) { return 0; }
  static void prepare(const SpmmArgs&, int64_t, int64_t) {}

  static void run(const SpmmArgs& a, int64_t begin, int64_t end, char*) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    for (int64_t s = begin; s < end; ++s) {
      for (int64_t token = 0; token < a.m;) {
        const int64_t left = a.m - token;
        if (left >= 4) {
          slices<4>(a, s, split_rows[s], split_rows[s + 1], token);
          token += 4;
        } else if (left >= 2) {
          slices<2>(a, s, split_rows[s], split_rows[s + 1], token);
          token += 2;
        } else {
          slices<1>(a, s, split_rows[s], split_rows[s + 1], token);
          token += 1;
        }
      }
    }
  }

  template <int T>
  static void slices(const SpmmArgs& a, int64_t split, int64_t begin, int64_t end, int64_t token) {
    const PackingHeader* w = a.w;
    const int64_t k = w->k;
    const Cell none{};
    const Cell& cell = w->panels ? section<Cell>(w, w->cells)[split] : none;
    const uint8_t* counts = section<uint8_t>(w, w->counts) + cell.counts;
    const uint16_t* masks = section<uint16_t>(w, w->rows) + cell.rows;
    const uint8_t* offsets = section<uint8_t>(w, w->offsets) + cell.offsets;
    const float* values = section<float>(w, w->values) + cell.values;
    const float* x = static_cast<const float*>(a.x) + token * a.ldx;

    for (int64_t row = begin; row < end; row += kSliceRows) {
      V sum[T][kGroups];
      SI_UNROLL
      for (int t = 0; t < T; ++t) {
        SI_UNROLL
        for (int g = 0; g < kGroups; ++g) sum[t][g] = Simd::zero();
      }
      for (int64_t first = 0; first < k; first += kChunkUnits, ++counts) {
        if (*counts == 0) continue;
        Simd::Chunk chunk[T];
        SI_UNROLL
        for (int t = 0; t < T; ++t) chunk[t].load(x + t * a.ldx + first, k - first);
        for (int steps = *counts; steps > 0; --steps, ++masks, offsets += kSliceRows, values += kSliceRows) {
          SI_UNROLL
          for (int g = 0; g < kGroups; ++g) {
            const Simd::Index at = Simd::load_index(offsets + g * L);
            const V weight = Simd::load(values + g * L);
            const uint32_t mask = static_cast<uint32_t>(*masks) >> (g * L);
            SI_UNROLL
            for (int t = 0; t < T; ++t) sum[t][g] = Simd::fma_masked(mask, weight, chunk[t].look_up(at), sum[t][g]);
          }
        }
      }
      SI_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        const int64_t first = row + g * L, left = end - first;
        if (left <= 0) break;
        const int count = left < L ? static_cast<int>(left) : L;
        const V bias = a.bias ? Simd::load_partial(a.bias + first, count) : Simd::zero();
        SI_UNROLL
        for (int t = 0; t < T; ++t) {
          float* y = static_cast<float*>(a.y) + (token + t) * a.ldy + first;
          Simd::store_partial(y, activate(Simd::add(sum[t][g], bias), a.activation), count);
        }
      }
    }
  }
};

}  // namespace
}  // namespace sparseinfer
