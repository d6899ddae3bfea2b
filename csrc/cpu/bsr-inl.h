// Kernel body for `bsr`: multiplies stored blocks as small dense products with the tiles of x. The rows of a block are
// cut into strips of 4 (2 or 1 where 4 does not divide them), because 4 rows of sums are what the registers hold.
// Strips of 16, of blocks that were packed for tiles, are multiplied 4 rows at a time.
//
// counts: one byte, blocks per (strip, panel); offsets: one byte per (strip, block), block column within the panel;
// values: [strip][block][columns of the block][rows of the strip]; pair storage [column pairs][rows][2], i8
// [fours of columns][rows][4]. Of sorted strips rows: uint16 row within the split.
#pragma once

#include "cpu/steps-inl.h"

namespace sparseinfer {
namespace {

template <TileMode kMode_>
struct Bsr : PackedPanels {
  static constexpr TileMode kMode = kMode_;
  static constexpr int kRows = 4;
  // Columns per position of the tile.
  static constexpr int kColumns = kMode == TileMode::kQuads ? 4 : kMode == TileMode::kDwords ? 2 : 1;

  template <class S>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const float* x, float* sums, int64_t, char*) {
    switch (w->strip) {
      case 1:
        return strips<S, 1>(w, split, panel, x, sums);
      case 2:
        return strips<S, 2>(w, split, panel, x, sums);
      case kTileOutputs:
        return strips<S, 4, kTileOutputs>(w, split, panel, x, sums);
      default:
        return strips<S, 4>(w, split, panel, x, sums);
    }
  }

  template <class S>
  static SI_INLINE void load(const float* x, typename Step<S>::X (&out)[S::kSums]) {
    if constexpr (kMode == TileMode::kDwords || kMode == TileMode::kQuads) {
      Step<S>::load(x, out);
    } else {
      constexpr uint16_t kHere = 0;
      Step<S>::load(x, Positions<1>(&kHere), out);
    }
  }

  // Block kLane of four neighbours of one position each. One load for the weights of all of them and one, `at`, for
  // where they are, because loads are what binds.
  template <class S, int kLane, class Multiply>
  static SI_INLINE void one_of_four(uint32_t at, typename S::Vec::Floats::Quad weights, Multiply multiply) {
    using Vec = typename S::Vec;
    const auto weight = Vec::weights(Vec::bits(Vec::Floats::template lane<kLane>(weights)));
    multiply(kLane % 2, size_t{at >> 8 * kLane & 255}, weight);
  }

  // The first `count` of four neighbours.
  template <class S, class Multiply>
  static SI_INLINE void up_to_four(int count, uint32_t at, const int8_t* values, Multiply multiply) {
    const auto weights = S::Vec::Floats::load_quad(reinterpret_cast<const float*>(values));
    one_of_four<S, 0>(at, weights, multiply);
    if (count > 1) one_of_four<S, 1>(at, weights, multiply);
    if (count > 2) one_of_four<S, 2>(at, weights, multiply);
    if (count > 3) one_of_four<S, 3>(at, weights, multiply);
  }

  // All blocks of a row, of one position each. Behind the last offsets and values others may be read.
  template <class S, class Multiply>
  static SI_INLINE void quads(const uint8_t* offsets, int blocks, const int8_t* values, Multiply multiply) {
    int block = 0;
    for (; block + 8 <= blocks; block += 8, values += 8 * kColumns) {
      uint64_t at;
      memcpy(&at, offsets + block, sizeof at);
      up_to_four<S>(4, static_cast<uint32_t>(at), values, multiply);
      up_to_four<S>(4, static_cast<uint32_t>(at >> 32), values + 4 * kColumns, multiply);
    }
    for (; block < blocks; block += 4, values += 4 * kColumns) {
      uint32_t at;
      memcpy(&at, offsets + block, sizeof at);
      up_to_four<S>(blocks - block, at, values, multiply);
    }
  }

  // A strip of one row of integers, whose sums may be added up in any order: two sets of them, each of every second
  // block, because one would be limited by the latency of the multiply-add.
  template <class S>
  static SI_INLINE void row(const float* x, const uint8_t* offsets, int blocks, int64_t positions,
                            const typename Step<S>::Payload* values, float* sums) {
    using Vec = typename S::Vec;
    typename Vec::V sum[2][S::kSums];
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) {
      sum[0][t] = Vec::load(sums + t * Vec::L);
      sum[1][t] = Vec::zero();
    }
    auto multiply = [&](int set, size_t position, auto weight) __attribute__((always_inline)) {
      typename Step<S>::X xv[S::kSums];
      load<S>(tokens_of<S>(x, position), xv);
      SI_UNROLL
      for (int t = 0; t < S::kSums; ++t) sum[set][t] = Step<S>::multiply(weight, xv[t], sum[set][t]);
    };
    if (Vec::L >= 8 && positions == 1) {
      if constexpr (Vec::L >= 8) quads<S>(offsets, blocks, values, multiply);
    } else {
      // One position at a time, of every second block in the second set.
      int block = 0;
      for (; block + 2 <= blocks; block += 2) {
        const int64_t first = offsets[block] * positions, second = offsets[block + 1] * positions;
        for (int64_t c = 0; c < positions; ++c, values += kColumns) {
          multiply(0, static_cast<size_t>(first + c), Step<S>::weight(values));
          multiply(1, static_cast<size_t>(second + c), Step<S>::weight(values + positions * kColumns));
        }
        values += positions * kColumns;
      }
      if (block < blocks) {
        for (int64_t c = 0; c < positions; ++c, values += kColumns) {
          multiply(0, static_cast<size_t>(offsets[block] * positions + c), Step<S>::weight(values));
        }
      }
    }
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) Vec::store(sums + t * Vec::L, Vec::add(sum[0][t], sum[1][t]));
  }

  // Strips of kStored rows, of which kStrip are multiplied together.
  template <class S, int kStrip, int kStored = kStrip>
  static void strips(const PackingHeader* w, int64_t split, int64_t panel, const float* x, float* sums) {
    using Vec = typename S::Vec;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t count = (split_rows[split + 1] - split_rows[split]) / kStored;
    const Cell& cell = section<Cell>(w, w->cells)[split * w->panels + panel];
    const uint8_t* counts = section<uint8_t>(w, w->counts) + cell.counts;
    const uint8_t* offsets = section<uint8_t>(w, w->offsets) + cell.offsets;
    const auto* values = section<typename Step<S>::Payload>(w, w->values) + cell.values;
    const int64_t positions = w->block_cols / kColumns;

    if constexpr (kMode == TileMode::kQuads && kStored == 1) {
      const uint16_t* rows = section<uint16_t>(w, w->rows) + cell.rows;
      for (int64_t s = 0; s < count && counts[s] > 0; ++s) {
        row<S>(x, offsets, counts[s], positions, values, sums + rows[s] * S::kTokens);
        offsets += counts[s];
        values += counts[s] * positions * kColumns;
      }
      return;
    }
    for (int64_t s = 0; s < count; ++s) {
      for (int first = 0; first < kStored; first += kStrip, sums += kStrip * S::kTokens) {
        if (counts[s] == 0) continue;
        const auto* from = values + first * kColumns;
        typename Vec::V sum[kStrip][S::kSums];
        SI_UNROLL
        for (int r = 0; r < kStrip; ++r) {
          SI_UNROLL
          for (int t = 0; t < S::kSums; ++t) sum[r][t] = Vec::load(sums + r * S::kTokens + t * Vec::L);
        }
        for (int block = 0; block < counts[s]; ++block) {
          const float* xb = x + offsets[block] * positions * S::kTokens;
          for (int64_t c = 0; c < positions; ++c, xb += S::kTokens, from += kStored * kColumns) {
            typename Step<S>::X xv[S::kSums];
            load<S>(xb, xv);
            SI_UNROLL
            for (int r = 0; r < kStrip; ++r) {
              const auto weight = Step<S>::weight(from + r * kColumns);
              SI_UNROLL
              for (int t = 0; t < S::kSums; ++t) sum[r][t] = Step<S>::multiply(weight, xv[t], sum[r][t]);
            }
          }
        }
        SI_UNROLL
        for (int r = 0; r < kStrip; ++r) {
          SI_UNROLL
          for (int t = 0; t < S::kSums; ++t) Vec::store(sums + r * S::kTokens + t * Vec::L, sum[r][t]);
        }
      }
      offsets += counts[s];
      values += counts[s] * positions * kStored * kColumns;
    }
  }
};

}  // namespace
}  // namespace sparseinfer
