// Kernel body for `grouptile`, which multiplies on tiles of matrices what grouplist does with vectors: a list of
// columns that 16 rows share is a dense product, of 16 rows of W by the columns of x in the list.
//
// W is the left operand here, a tile of 16 rows x 32 columns of the list (int8: 64) as the packing holds it, and x the
// right one: a row of its tile is a step of 2 columns (4) for 16 tokens. The columns of the list are gathered from the
// panel of x, which lies [columns][tokens] (tiles-inl.h), and interleaved, once for a group of rows: 64 tokens at a
// time go to a ring of tiles in L1, while the tiles before them are multiplied.
//
// Sums [rows][tokens] stay in registers for a panel.
//
// Computed, not measured: 16 rows of W x 32 columns x 16 tokens take the tile unit 16 cycles, as a dense product does.
// Their x takes 16 interleaves on port 5, 16 stores of 64 bytes, one a cycle, and 32 loads, two a cycle, so that this
// is 1 to 1.5 times as long: 0.67 to 1 over the density times dense, less what lists are padded by to whole tiles: at
// 80 % zeros in a panel of 2048 columns 4 %, at 90 % 8 %. Weights that more than 16 rows share would gather x less
// often.
#pragma once

#include "cpu/amx_tokens-inl.h"
#include "cpu/steps-inl.h"

namespace sparseinfer {
namespace {

template <TileMode kMode_>
struct Grouptile : PackedPanels {
  static constexpr TileMode kMode = kMode_;
  static constexpr int kRows = kTileOutputs;
  static constexpr int64_t kAhead = 2, kRing = 4;  // tiles of weights, each of which meets up to 4 of x
  static constexpr int64_t kSlotBytes = 4 * kTileBytes;
  static int64_t scratch_bytes(const PackingHeader*) { return kRing * kSlotBytes; }

  // sums [rows of the split][tokens]
  template <class S>
  static void cell(const PackingHeader* w, int64_t split, int64_t panel, const typename S::Element* x, float* sums,
                   int64_t, char* scratch) {
    using Payload = typename Step<S>::Payload;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t groups = (split_rows[split + 1] - split_rows[split]) / kTileOutputs;
    const Cell& cell = section<Cell>(w, w->cells)[split * w->panels + panel];
    const uint16_t* counts = section<uint16_t>(w, w->counts) + cell.counts;
    const uint16_t* offsets = section<uint16_t>(w, w->offsets) + cell.offsets;
    const char* values = reinterpret_cast<const char*>(section<Payload>(w, w->values) + cell.values);
    constexpr int64_t kInputs = kTileSteps * Step<S>::kPositions;
    tile::load_config(turned_config(S::Vec::L * 4));
    for (int64_t g = 0; g < groups; ++g, sums += kTileOutputs * S::kTokens) {
      const int64_t tiles = (counts[g] + kInputs - 1) / kInputs;
      if (tiles == 0) continue;
      group<S>(x, offsets, values, tiles, sums, scratch);
      offsets += tiles * kInputs;
      values += tiles * kTileBytes;
    }
    tile::release();
  }

  template <class S>
  static void group(const typename S::Element* x, const uint16_t* offsets, const char* values, int64_t tiles,
                    float* sums, char* ring) {
    static_assert(S::kSums <= 4, "as many as there are registers of sums");
    constexpr int64_t kSumsStep = S::kTokens * 4;
    for_each<S::kSums>([&](auto t) { tile::load_rows<decltype(t)::value>(sums + t.value * S::Vec::L, kSumsStep); });
    for (int64_t i = 0; i < kAhead && i < tiles; ++i) gather<S>(x, offsets, ring + i * kSlotBytes);
    for (int64_t i = 0; i < tiles; ++i, values += kTileBytes) {
      const char* from = ring + i % kRing * kSlotBytes;
      tile::load<kTileWeights>(values);
      __builtin_prefetch(values + kPrefetchBytes);
      for_each<S::kSums>([&](auto t) {
        constexpr int T = decltype(t)::value, B = kTileX + T % 2;
        tile::load<B>(from + T * kTileBytes);
        if constexpr (is_int8(kMode)) {
          tile::dot_i8_u8<T, kTileWeights, B>();
        } else {
          tile::dot_bf16<T, kTileWeights, B>();
        }
      });
      if (i + kAhead < tiles) gather<S>(x, offsets, ring + (i + kAhead) % kRing * kSlotBytes);
    }
    for_each<S::kSums>([&](auto t) { tile::store_rows<decltype(t)::value>(sums + t.value * S::Vec::L, kSumsStep); });
  }

  // The columns of the next tile: to [vectors of tokens] tiles.
  template <class S>
  static SI_INLINE void gather(const typename S::Element* x, const uint16_t*& offsets, char* to) {
    SI_UNROLL
    for (int step = 0; step < kTileSteps; ++step, offsets += Step<S>::kPositions) {
      typename Step<S>::X columns[S::kSums];
      Step<S>::load(x, Positions<Step<S>::kPositions>(offsets), columns);
      SI_UNROLL
      for (int t = 0; t < S::kSums; ++t)
        memcpy(to + t * kTileBytes + step * kTileRowBytes, &columns[t], sizeof *columns);
    }
  }
};

}  // namespace
}  // namespace sparseinfer
