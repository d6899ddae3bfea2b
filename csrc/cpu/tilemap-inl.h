// Kernel for `tilemap`: tiles of weights are expanded from their masks (tile_weights-inl.h) into a ring in L1 and
// multiplied by the tile unit, for any number of tokens. Tiles without weights are not stored, and take no time.
//
// Up to 64 tokens: sums of 4 strips x 1 token tile, 2 x 2 or 1 x 4 (or 3) stay in registers for all of k. In program
// order a tile is multiplied between the expansion of the tiles that come 4 later: a tile cannot be loaded before the
// stores to it have left the core. More tokens: within panels of 8 input tiles, whose sums go through L2, two strips at
// a time are expanded, while the two before them are multiplied with up to 256 tokens; then as above, 2 x 2.
//
// Strips that are multiplied together share x where their tiles lie in the same places, as they do where no tile is
// empty. Where they do not, each has its own list of them, and the lists are walked side by side, as far as the
// shortest goes: what branches depend on is a strip, not a tile.
//
// Sums: every y is one sum over k in ascending order, of one tile after another, whatever the number of tokens.
//
// Computed, not measured: a product takes the tile unit 16 cycles, one per token tile and part of x, beside the 32 that
// a tile takes to expand. So of bf16 and i8 all products of up to 32 tokens are free.
#pragma once

#include "cpu/tile_weights-inl.h"

namespace sparseinfer {
namespace {

constexpr int64_t kRingTiles = 8, kTilesAhead = 4;
constexpr int64_t kRegisterTiles = 4;  // token tiles whose sums may stay in registers

// For many tokens. Two strips of weights, now and next, are 32 KB, beside x for two token tiles: the L1 of 48 KB that
// every core with tiles has holds half of them and what is multiplied. The sums of a chunk, 256 KB, stay in L2.
constexpr int64_t kPanelInputs = 8, kChunkStrips = 16, kMostTokenTiles = 16;
constexpr int64_t kPairTiles = 2 * kPanelInputs;

constexpr int64_t kTileFloats = kTileRows * R;

// Registers of sums [kStrips][kTokenTiles].
template <int kStrips, int kTokenTiles>
SI_INLINE void zero_sums() {
  for_each<kStrips * kTokenTiles>([&](auto c) { tile::zero<decltype(c)::value>(); });
}
template <int kStrips, int kTokenTiles>
SI_INLINE void load_sums(const float* sums, int64_t strip_step) {
  for_each<kStrips * kTokenTiles>([&](auto c) {
    constexpr int C = decltype(c)::value;
    tile::load<C>(sums + C / kTokenTiles * strip_step + C % kTokenTiles * kTileFloats);
  });
}
template <int kStrips, int kTokenTiles>
SI_INLINE void store_sums(float* sums, int64_t strip_step) {
  for_each<kStrips * kTokenTiles>([&](auto c) {
    constexpr int C = decltype(c)::value;
    tile::store<C>(sums + C / kTokenTiles * strip_step + C % kTokenTiles * kTileFloats);
  });
}

// One tile of each of kCount strips, whose sums are those of strip kFirst on: x of token tile t at `from(s) + t *
// tile_bytes`, the same for all strips if kAlike, weights of strip s at `weights(s)`; `between(s)` is what the core
// does while the unit multiplies.
template <class W, int kFirst, int kCount, int kTokenTiles, bool kAlike, class From, class Weights, class Between>
SI_INLINE void multiply_input(const TileTokens& x, From from, Weights weights, Between between) {
  for_each<kCount>([&](auto s) {
    constexpr int S = decltype(s)::value, B = kTileWeights + S % 2;
    tile::load<B>(weights(S));
    const char* at = from(S);
    auto multiply = [&](auto t) __attribute__((always_inline)) {
      constexpr int T = decltype(t)::value, A = kTileX + T % 2;
      constexpr bool kIsThere = S > 0 && kAlike && kTokenTiles <= 2 && W::kStorage != Storage::kWI8;
      if constexpr (!kIsThere) tile::load<A>(at + T * x.tile_bytes());
      W::template dot<(kFirst + S) * kTokenTiles + T, A, B>();
    };
    for_each<kTokenTiles>(multiply);
    if constexpr (W::kStorage == Storage::kWI8) {
      for (int64_t p = 1; p < x.parts; ++p) {
        at += x.part_bytes();
        for_each<kTokenTiles>(multiply);
      }
    }
    between(S);
  });
}

// The next `tiles` tiles of strips kFirst to kFirst + kCount - 1.
template <class W, int kFirst, int kCount, int kTokenTiles, bool kAlike>
SI_INLINE void multiply_tiles(const TileTokens& x, Strip<W>* strips, int64_t tiles, char* ring) {
  constexpr int64_t kAhead = kTilesAhead / kCount;  // of each strip
  auto slot = [&](int64_t i, int s) { return ring + ((i * kCount + s) & (kRingTiles - 1)) * kTileBytes; };
  auto expand = [&](int64_t i, int s) { expand_tile(strips[kFirst + s], slot(i, s)); };
  const uint32_t* inputs[kCount];
  for (int s = 0; s < kCount; ++s) inputs[s] = strips[kFirst + s].inputs;
  auto from = [&](int64_t i, int s) { return x.tile(0) + inputs[kAlike ? 0 : s][i] * x.input_bytes(); };
  for (int64_t i = 0; i < kAhead && i < tiles; ++i) {
    SI_UNROLL
    for (int s = 0; s < kCount; ++s) expand(i, s);
  }
  int64_t i = 0;
  for (; i + kAhead < tiles; ++i) {
    multiply_input<W, kFirst, kCount, kTokenTiles, kAlike>(
        x, [&](int s) { return from(i, s); }, [&](int s) { return slot(i, s); }, [&](int s) { expand(i + kAhead, s); });
  }
  for (; i < tiles; ++i) {
    multiply_input<W, kFirst, kCount, kTokenTiles, kAlike>(
        x, [&](int s) { return from(i, s); }, [&](int s) { return slot(i, s); }, [](int) {});
  }
}

// sums [kStrips][kTokenTiles] tiles of the strips, for all of k and up to 64 tokens.
template <class W, int kStrips, int kTokenTiles>
void multiply_strips(const TileTokens& x, Strip<W> (&strips)[kStrips], char* ring, float* sums) {
  zero_sums<kStrips, kTokenTiles>();
  bool same = true;
  int64_t least = strips[0].tiles;
  for (int s = 1; s < kStrips; ++s) {
    same = same && alike(strips[0], strips[0].tiles, strips[s], strips[s].tiles);
    if (strips[s].tiles < least) least = strips[s].tiles;
  }
  if (same) {
    multiply_tiles<W, 0, kStrips, kTokenTiles, true>(x, strips, least, ring);
  } else {
    multiply_tiles<W, 0, kStrips, kTokenTiles, false>(x, strips, least, ring);
    for_each<kStrips>([&](auto s) {
      constexpr int S = decltype(s)::value;
      multiply_tiles<W, S, 1, kTokenTiles, true>(x, strips, strips[S].tiles, ring);
    });
  }
  store_sums<kStrips, kTokenTiles>(sums, kTokenTiles * kTileFloats);
}

// y of up to 4 strips and one token tile. `first`: the strips from their first tile on.
template <class W, int kStrips>
void finish_strips_of(const SpmmArgs& a, const TileTokens& x, const Strip<W>* first, float* sums, int64_t stride,
                      int64_t token_tile, int64_t row) {
  if constexpr (W::kStorage != Storage::kI8) {
    for (uint32_t hostile = x.hostile_tokens(token_tile); hostile != 0; hostile &= hostile - 1) {
      const int64_t token = __builtin_ctz(hostile);
      for (int s = 0; s < kStrips; ++s) {
        sum_stored(first[s], x.tile(token_tile) + token * kTileRowBytes, x, sums + s * stride + token * R);
      }
    }
  }
  finish_strips<W::kStorage, kStrips>(a, x, sums, stride, token_tile * kTileRows, row);
}

template <class W>
struct Tilemap {
  static constexpr bool kTakesConv = true;
  static constexpr bool kBytes = W::kStorage == Storage::kI8;
  static constexpr bool kNative = true;
  static constexpr int64_t kTileTokens = 0;  // threads that shared tokens would expand each weight again

  static bool is_few(const SpmmArgs& a) { return a.m <= kRegisterTiles * kTileRows; }
  static int64_t workspace_bytes(const SpmmArgs& a) { return TileTokens(a).workspace_bytes(); }
  static int64_t scratch_bytes(const SpmmArgs& a) {
    if (is_few(a)) return (kRingTiles + kRegisterTiles) * kTileBytes;
    return (2 * kPairTiles + kChunkStrips * kMostTokenTiles) * kTileBytes;
  }
  static int64_t prepare_items(const SpmmArgs& a) { return prepare_tile_items(a); }
  static void prepare(const SpmmArgs& a, int64_t begin, int64_t end) { prepare_tiles(a, begin, end); }

  static void run(const SpmmArgs& a, int64_t begin, int64_t end, char* scratch) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    const int64_t row = split_rows[begin], strips = (split_rows[end] - row + kTileRows - 1) / kTileRows;
    StripReader<W> reader(a.w, begin);
    const TileTokens x(a);
    tile::load_config(tile_config(x.rows));
    if (is_few(a)) {
      switch (x.tiles) {
        case 1:
          few<4, 1>(a, x, reader, strips, row, scratch);
          break;
        case 2:
          few<2, 2>(a, x, reader, strips, row, scratch);
          break;
        case 3:
          few<1, 3>(a, x, reader, strips, row, scratch);
          break;
        default:
          few<1, 4>(a, x, reader, strips, row, scratch);
      }
    } else {
      many(a, x, reader, strips, row, scratch);
    }
    tile::release();
  }

  // `strips` strips from `row` on: kStrips at a time, and the rest by half as many.
  template <int kStrips, int kTokenTiles>
  static void few(const SpmmArgs& a, const TileTokens& x, StripReader<W>& reader, int64_t strips, int64_t row,
                  char* scratch) {
    float* sums = reinterpret_cast<float*>(scratch + kRingTiles * kTileBytes);
    for (; strips >= kStrips; strips -= kStrips, row += kStrips * kTileRows) {
      Strip<W> first[kStrips], now[kStrips];
      for (int s = 0; s < kStrips; ++s) first[s] = now[s] = reader.next();
      multiply_strips<W, kStrips, kTokenTiles>(x, now, scratch, sums);
      for (int64_t t = 0; t < kTokenTiles; ++t) {
        finish_strips_of<W, kStrips>(a, x, first, sums + t * kTileFloats, kTokenTiles * kTileFloats, t, row);
      }
    }
    if constexpr (kStrips > 1) {
      if (strips > 0) few<kStrips / 2, kTokenTiles>(a, x, reader, strips, row, scratch);
    }
  }

  static void many(const SpmmArgs& a, const TileTokens& x, const StripReader<W>& reader, int64_t strips, int64_t row,
                   char* scratch) {
    const int64_t blocks = (x.tiles + kMostTokenTiles - 1) / kMostTokenTiles;
    for (int64_t block = 0; block < blocks; ++block) {
      StripReader<W> from = reader;
      const int64_t begin = x.tiles * block / blocks, end = x.tiles * (block + 1) / blocks;
      for (int64_t s = 0; s < strips; s += kChunkStrips) {
        const int64_t count = strips - s < kChunkStrips ? strips - s : kChunkStrips;
        chunk(a, x, from, count, row + s * kTileRows, begin, end, scratch);
      }
    }
  }

  // Up to two strips of weights in a panel, tile by tile, in the order in which `step` is called.
  struct Expansion {
    Strip<W>* strips;
    int64_t count;              // of strips
    char* to;                   // [strips][kPanelInputs] tiles
    int64_t tiles[2];           // of each strip in the panel
    const uint32_t* inputs[2];  // of those tiles
    bool same;                  // and both have the same ones
    int64_t strip, tile;        // the next

    Expansion(Strip<W>* strips_, int64_t count_, int64_t panel_end, char* to_)
        : strips(strips_), count(count_), to(to_), tiles{}, inputs{}, same(count_ == 2), strip(0), tile(0) {
      for (int64_t s = 0; s < count; ++s) {
        inputs[s] = strips[s].inputs;
        while (tiles[s] < strips[s].tiles && inputs[s][tiles[s]] < panel_end) ++tiles[s];
      }
      if (same) same = alike(strips[0], tiles[0], strips[1], tiles[1]);
      skip_ended();
    }
    SI_INLINE void skip_ended() {
      while (strip < count && tile == tiles[strip]) ++strip, tile = 0;
    }
    SI_INLINE void step() {
      if (strip == count) return;
      expand_tile(strips[strip], to + (strip * kPanelInputs + tile) * kTileBytes);
      ++tile;
      skip_ended();
    }
  };

  // `count` strips from `row` on and token tiles [begin, end).
  static void chunk(const SpmmArgs& a, const TileTokens& x, StripReader<W>& reader, int64_t count, int64_t row,
                    int64_t begin, int64_t end, char* scratch) {
    Strip<W> first[kChunkStrips], now[kChunkStrips];
    for (int64_t s = 0; s < count; ++s) first[s] = now[s] = reader.next();
    float* sums = reinterpret_cast<float*>(scratch + 2 * kPairTiles * kTileBytes);
    const int64_t strip_step = (end - begin) * kTileFloats;
    const int64_t pairs = (count + 1) / 2, panels = (x.inputs + kPanelInputs - 1) / kPanelInputs;
    if (panels == 0) memset(sums, 0, static_cast<size_t>(count * strip_step) * sizeof(float));

    // Step i: pair i % pairs of panel i / pairs.
    auto expansion = [&](int64_t i) {
      const int64_t s = i % pairs * 2, left = i < panels * pairs ? count - s : 0;
      return Expansion(now + s, left < 2 ? left : 2, (i / pairs + 1) * kPanelInputs,
                       scratch + i % 2 * kPairTiles * kTileBytes);
    };
    Expansion weights = expansion(0);
    for (int64_t i = 0; i < panels * pairs; ++i) {
      while (weights.strip < weights.count) weights.step();
      Expansion next = expansion(i + 1);
      float* to = sums + i % pairs * 2 * strip_step;
      for (int64_t t = begin; t < end; t += 2, to += 2 * kTileFloats) {
        const bool starts = i < pairs;
        if (t + 1 < end) {
          panel<2>(x, weights, x.tile(t), starts, to, strip_step, next);
        } else {
          panel<1>(x, weights, x.tile(t), starts, to, strip_step, next);
        }
      }
      weights = next;
    }
    for (int64_t t = begin; t < end; ++t) {
      float* from = sums + (t - begin) * kTileFloats;
      int64_t s = 0;
      for (; s + 4 <= count; s += 4) {
        finish_strips_of<W, 4>(a, x, first + s, from + s * strip_step, strip_step, t, row + s * kTileRows);
      }
      for (; s < count; ++s) {
        finish_strips_of<W, 1>(a, x, first + s, from + s * strip_step, strip_step, t, row + s * kTileRows);
      }
    }
  }

  // sums += weights . x in one panel, for kTokenTiles token tiles.
  template <int kTokenTiles>
  static void panel(const TileTokens& x, const Expansion& weights, const char* from, bool starts, float* sums,
                    int64_t strip_step, Expansion& next) {
    if (weights.same) return strips_of<2, kTokenTiles>(x, weights, 0, from, starts, sums, strip_step, next);
    for (int64_t s = 0; s < weights.count; ++s) {
      strips_of<1, kTokenTiles>(x, weights, s, from, starts, sums + s * strip_step, strip_step, next);
    }
  }

  // The same for kStrips strips from strip s on, while the next weights are expanded.
  template <int kStrips, int kTokenTiles>
  static void strips_of(const TileTokens& x, const Expansion& weights, int64_t s, const char* from, bool starts,
                        float* sums, int64_t strip_step, Expansion& next) {
    if (starts) {
      zero_sums<kStrips, kTokenTiles>();
    } else {
      load_sums<kStrips, kTokenTiles>(sums, strip_step);
    }
    const char* expanded = weights.to + s * kPanelInputs * kTileBytes;
    for (int64_t i = 0; i < weights.tiles[s]; ++i) {
      const char* at = from + weights.inputs[s][i] * x.input_bytes();
      multiply_input<W, 0, kStrips, kTokenTiles, true>(
          x, [&](int) { return at; }, [&](int strip) { return expanded + (strip * kPanelInputs + i) * kTileBytes; },
          [&](int strip) {
            if (strip == 0) next.step();
          });
    }
    store_sums<kStrips, kTokenTiles>(sums, strip_step);
  }
};

}  // namespace
}  // namespace sparseinfer
