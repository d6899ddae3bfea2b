// Kernel for `bsr` at levels with tiles. Blocks of 16 x 32 and multiples, of int8 of 16 x 64, packed for such a level,
// are tiles as they lie in memory: they go straight into the tile unit, one strip of 16 rows x up to 4 token tiles at a
// time. Other blocks are multiplied with vectors (bsr-inl.h).
//
// Sums stay in registers for a panel, which holds 255 blocks; between panels, and for the epilogue, in scratch [strips
// of the split][token tiles]. All weights of a block are stored, zeros too, and multiplied.
//
// Computed, not measured: a tile of weights takes the unit 16 cycles per token tile; x comes from L2, a tile for each
// product, in 16 to 25 cycles.
#pragma once

#include "cpu/amx_tokens-inl.h"
#include "cpu/bsr-inl.h"

namespace sparseinfer {
namespace {

template <Storage kStorage>
struct BsrTiles {
  static constexpr bool kBytes = kStorage == Storage::kI8;
  using Vectors = Tiled<Bsr<kBytes ? TileMode::kQuads : TileMode::kDwords>>;
  static constexpr bool kTakesConv = false;
  static constexpr bool kNative = true;
  static constexpr int64_t kTileTokens = Vectors::kTileTokens;
  static constexpr int64_t kTokenTiles = 4, kStripFloats = kTokenTiles * kTileRows * R;

  static bool in_tiles(const SpmmArgs& a) { return a.w->strip == kTileOutputs; }
  static int64_t workspace_bytes(const SpmmArgs& a) {
    return in_tiles(a) ? TileTokens(a).workspace_bytes() : Vectors::workspace_bytes(a);
  }
  static int64_t scratch_bytes(const SpmmArgs& a) {
    return in_tiles(a) ? kMaxSplitRows / kTileOutputs * kStripFloats * 4 : Vectors::scratch_bytes(a);
  }
  static int64_t prepare_items(const SpmmArgs& a) {
    return in_tiles(a) ? prepare_tile_items(a) : Vectors::prepare_items(a);
  }
  static void prepare(const SpmmArgs& a, int64_t begin, int64_t end) {
    if (in_tiles(a)) return prepare_tiles(a, begin, end);
    Vectors::prepare(a, begin, end);
  }

  static void run(const SpmmArgs& a, int64_t begin, int64_t end, char* scratch) {
    if (!in_tiles(a)) return Vectors::run(a, begin, end, scratch);
    const TileTokens x(a);
    float* sums = reinterpret_cast<float*>(scratch);
    tile::load_config(tile_config(x.rows));
    for (int64_t t = 0; t < x.tiles; t += kTokenTiles) {
      for (int64_t split = begin; split < end; ++split) {
        switch (x.tiles - t) {
          case 1:
            multiply_split<1>(a, x, t, split, sums);
            break;
          case 2:
            multiply_split<2>(a, x, t, split, sums);
            break;
          case 3:
            multiply_split<3>(a, x, t, split, sums);
            break;
          default:
            multiply_split<4>(a, x, t, split, sums);
        }
      }
    }
    tile::release();
  }

  template <int kTiles>
  static void multiply_split(const SpmmArgs& a, const TileTokens& x, int64_t first_tile, int64_t split, float* sums) {
    const PackingHeader* w = a.w;
    const int64_t* split_rows = section<int64_t>(w, w->split_rows);
    const int64_t row = split_rows[split], strips = (split_rows[split + 1] - row) / kTileOutputs;
    const int64_t inputs = tile_inputs(kStorage), per_block = w->block_cols / inputs, step = x.input_bytes();
    if (w->panels == 0) memset(sums, 0, static_cast<size_t>(strips * kStripFloats) * sizeof(float));
    for (int64_t panel = 0; panel < w->panels; ++panel) {
      const Cell& cell = section<Cell>(w, w->cells)[split * w->panels + panel];
      const uint8_t* counts = section<uint8_t>(w, w->counts) + cell.counts;
      const uint8_t* offsets = section<uint8_t>(w, w->offsets) + cell.offsets;
      const char* values = section<char>(w, w->values) + cell.values * payload_bytes(kStorage);
      const char* from = x.tile(first_tile) + panel * w->panel / inputs * step;
      for (int64_t s = 0; s < strips; ++s) {
        float* to = sums + s * kStripFloats;
        for_each<kTiles>([&](auto t) {
          constexpr int T = decltype(t)::value;
          if (panel == 0) {
            tile::zero<T>();
          } else {
            tile::load<T>(to + T * kTileRows * R);
          }
        });
        for (int i = 0; i < counts[s]; ++i) {
          const char* xb = from + *offsets++ * per_block * step;
          for (int64_t c = 0; c < per_block; ++c, xb += step, values += kTileBytes) {
            multiply<kTiles>(values, xb, x.tile_bytes());
          }
        }
        for_each<kTiles>([&](auto t) { tile::store<decltype(t)::value>(to + decltype(t)::value * kTileRows * R); });
      }
    }
    for (int64_t t = 0; t < kTiles; ++t) {
      float* from = sums + t * kTileRows * R;
      int64_t s = 0;
      const int64_t token = (first_tile + t) * kTileRows;
      for (; s + 4 <= strips; s += 4) {
        finish_strips<kStorage, 4>(a, x, from + s * kStripFloats, kStripFloats, token, row + s * kTileOutputs);
      }
      for (; s < strips; ++s) {
        finish_strips<kStorage, 1>(a, x, from + s * kStripFloats, kStripFloats, token, row + s * kTileOutputs);
      }
    }
  }

  template <int kTiles>
  static SI_INLINE void multiply(const char* weights, const char* x, int64_t token_bytes) {
    tile::load<kTileWeights>(weights);
    for_each<kTiles>([&](auto t) {
      constexpr int T = decltype(t)::value, A = kTileX + T % 2;
      tile::load<A>(x + T * token_bytes);
      if constexpr (kBytes) {
        tile::dot_u8_i8<T, A, kTileWeights>();
      } else {
        tile::dot_bf16<T, A, kTileWeights>();
      }
    });
  }
};

}  // namespace
}  // namespace sparseinfer
