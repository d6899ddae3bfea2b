// Kernel for `tilemap`: tiles of weights are expanded from their masks into a ring in L1 and multiplied by the tile
// unit, for any number of tokens. Values are read a vector at a time, so up to 64 bytes past the last one.
//
// Up to 64 tokens: sums of 4 strips x 1 token tile, 2 x 2 or 1 x 4 (or 3) stay in registers for all of k. In program
// order a tile is multiplied between the expansion of the tiles that come 4 later: a tile cannot be loaded before the
// stores to it have left the core. More tokens: within panels of 8 input tiles, whose sums go through L2, two strips at
// a time are expanded, while the two before them are multiplied with up to 256 tokens; then as above, 2 x 2.
//
// Sums: every y is one sum over k in ascending order, of one tile after another, whatever the number of tokens.
//
// Computed, not measured (published port tables of Golden Cove). Expanding a row takes two operations of port 5, 32
// cycles a tile; with masks from `kmovd`, a third one, it were 48. Hence a mask is made by a broadcast, on the load
// ports, and a shift and `vpmovw2m`, on port 0, another 32 cycles. llvm-mca 14 (-mcpu=sapphirerapids, whose ports are
// those of Skylake) gives 36 cycles a tile for what GCC 12 makes of it, at 5.9 of 6 operations a cycle, stores counted
// twice. A product takes the tile unit 16 cycles, one per token tile, beside that: up to two of them are free.
#pragma once

#include "cpu/amx_tokens-inl.h"

namespace sparseinfer {
namespace {

constexpr int64_t kRingTiles = 8, kTilesAhead = 4;
constexpr int64_t kRegisterTiles = 4;  // token tiles whose sums may stay in registers

// For many tokens. Two strips of weights, now and next, are 32 KB, beside x for two token tiles: the L1 of 48 KB that
// every core with tiles has holds half of them and what is multiplied. The sums of a chunk, 256 KB, stay in L2.
constexpr int64_t kPanelInputs = 8, kChunkStrips = 16, kMostTokenTiles = 16;
constexpr int64_t kPairTiles = 2 * kPanelInputs;

// The next tile of 16 rows of W.
struct Strip {
  const uint32_t* masks;
  const uint16_t* values;
};

// The tiles of strips in the order of rows, from the first of split `split` on.
class StripReader {
 public:
  StripReader(const PackingHeader* w, int64_t split)
      : split_rows_(section<int64_t>(w, w->split_rows)),
        cells_(section<Cell>(w, w->cells)),
        starts_(section<int64_t>(w, w->counts)),
        masks_(section<uint32_t>(w, w->rows)),
        values_(section<uint16_t>(w, w->values)),
        inputs_((w->k + kTileInputs - 1) / kTileInputs),
        split_(split),
        strip_(split_rows_[split] / kTileRows) {}

  Strip next() {
    while (split_rows_[split_ + 1] <= strip_ * kTileRows) ++split_;
    if (inputs_ == 0) return {masks_, values_};
    const Strip strip = {masks_ + strip_ * inputs_ * kTileRows, values_ + cells_[split_].values + starts_[strip_]};
    ++strip_;
    return strip;
  }

 private:
  const int64_t* split_rows_;
  const Cell* cells_;
  const int64_t* starts_;
  const uint32_t* masks_;
  const uint16_t* values_;
  int64_t inputs_, split_, strip_;
};

// Bit 2 i + p of the result, weight 2 i + p of a row of a tile: bit i of half p of the mask. The shifts move it to the
// sign of its word.
SI_INLINE __mmask32 stored_weights(const uint32_t* mask) {
  const __m512i shifts = _mm512_set_epi16(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11,
                                          12, 12, 13, 13, 14, 14, 15, 15);
  __m512i halves;  // from memory: from a register it is an operation of port 5
  __asm__("vpbroadcastd %1, %0" : "=v"(halves) : "m"(*mask));
  return _mm512_movepi16_mask(_mm512_sllv_epi16(halves, shifts));
}

SI_INLINE __m512i expand_row(const uint32_t* mask, const uint16_t* values) {
  return _mm512_maskz_expand_epi16(stored_weights(mask), _mm512_loadu_si512(values));
}

SI_INLINE void expand_tile(Strip& strip, char* to) {
  const uint32_t* const masks = strip.masks;
  const uint16_t* values = strip.values;
  const char* const ahead = reinterpret_cast<const char*>(values) + kPrefetchBytes;
  SI_UNROLL
  for (int row = 0; row < kTileRows; ++row) {
    _mm512_store_si512(to + row * kTileRowBytes, expand_row(masks + row, values));
    values += __builtin_popcount(masks[row]);
    if (row % 2 == 0) __builtin_prefetch(ahead + row * 32);
  }
  strip = {masks + kTileRows, values};
}

// Registers of sums [kStrips][kTokenTiles].
template <int kStrips, int kTokenTiles>
SI_INLINE void zero_sums() {
  for_each<kStrips * kTokenTiles>([&](auto c) { tile::zero<decltype(c)::value>(); });
}
template <int kStrips, int kTokenTiles>
SI_INLINE void load_sums(const float* sums, int64_t strip_step, int64_t token_step) {
  for_each<kStrips * kTokenTiles>([&](auto c) {
    constexpr int C = decltype(c)::value;
    tile::load<C>(sums + C / kTokenTiles * strip_step + C % kTokenTiles * token_step);
  });
}
template <int kStrips, int kTokenTiles>
SI_INLINE void store_sums(float* sums, int64_t strip_step, int64_t token_step) {
  for_each<kStrips * kTokenTiles>([&](auto c) {
    constexpr int C = decltype(c)::value;
    tile::store<C>(sums + C / kTokenTiles * strip_step + C % kTokenTiles * token_step);
  });
}

// One input tile: x of token tile t at `x + t * token_bytes`, weights of strip s at `weights(s)`; `between(s)` is what
// the core does while the unit multiplies.
template <int kStrips, int kTokenTiles, class Weights, class Between>
SI_INLINE void multiply_input(const char* x, int64_t token_bytes, Weights weights, Between between) {
  for_each<kStrips>([&](auto s) {
    constexpr int S = decltype(s)::value, B = kTileWeights + S % 2;
    tile::load<B>(weights(S));
    for_each<kTokenTiles>([&](auto t) {
      constexpr int T = decltype(t)::value, A = kTileX + T % 2;
      if constexpr (S == 0 || kTokenTiles > 2) tile::load<A>(x + T * token_bytes);
      tile::dot_bf16<S * kTokenTiles + T, A, B>();
    });
    between(S);
  });
}

// sums [kStrips][kTokenTiles] tiles of the strips, for all of k and up to 64 tokens.
template <int kStrips, int kTokenTiles>
void multiply_strips(const TileTokens& x, Strip (&strips)[kStrips], char* ring, float* sums) {
  constexpr int64_t kAhead = kTilesAhead / kStrips;  // input tiles
  const int64_t inputs = x.inputs, step = x.input_bytes(), token_bytes = x.tile_bytes();
  const char* from = x.tile(0);
  auto slot = [&](int64_t input, int s) { return ring + ((input * kStrips + s) & (kRingTiles - 1)) * kTileBytes; };
  zero_sums<kStrips, kTokenTiles>();
  for (int64_t i = 0; i < kAhead && i < inputs; ++i) {
    SI_UNROLL
    for (int s = 0; s < kStrips; ++s) expand_tile(strips[s], slot(i, s));
  }
  int64_t i = 0;
  for (; i + kAhead < inputs; ++i, from += step) {
    multiply_input<kStrips, kTokenTiles>(
        from, token_bytes, [&](int s) { return slot(i, s); },
        [&](int s) { expand_tile(strips[s], slot(i + kAhead, s)); });
  }
  for (; i < inputs; ++i, from += step) {
    multiply_input<kStrips, kTokenTiles>(from, token_bytes, [&](int s) { return slot(i, s); }, [](int) {});
  }
  store_sums<kStrips, kTokenTiles>(sums, kTokenTiles * kTileRows * R, kTileRows * R);
}

// sums[16] of one token, from what is stored alone.
static inline void sum_stored(Strip strip, const char* x, int64_t inputs, int64_t step, float* sums) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < inputs; ++i, x += step, strip.masks += kTileRows) {
    const BF16* from = reinterpret_cast<const BF16*>(x);
    for (int row = 0; row < kTileRows; ++row, from += 2) {
      const uint32_t mask = strip.masks[row];
      const __m512i weights = expand_row(strip.masks + row, strip.values);
      const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(weights, 16));
      const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(weights, _mm512_set1_epi32(-65536)));
      sum = _mm512_mask3_fmadd_ps(even, _mm512_set1_ps(widen(from[0])), sum, static_cast<__mmask16>(mask));
      sum = _mm512_mask3_fmadd_ps(odd, _mm512_set1_ps(widen(from[1])), sum, static_cast<__mmask16>(mask >> 16));
      strip.values += __builtin_popcount(mask);
    }
  }
  _mm512_storeu_ps(sums, sum);
}

// y of up to 4 strips and one token tile. `first`: the strips from their first tile on.
template <int kStrips>
void finish_strips_of(const SpmmArgs& a, const TileTokens& x, const Strip* first, float* sums, int64_t stride,
                      int64_t token_tile, int64_t row) {
  for (uint32_t hostile = x.hostile_tokens(token_tile); hostile != 0; hostile &= hostile - 1) {
    const int64_t token = __builtin_ctz(hostile);
    for (int s = 0; s < kStrips; ++s) {
      sum_stored(first[s], x.tile(token_tile) + token * kTileRowBytes, x.inputs, x.input_bytes(),
                 sums + s * stride + token * R);
    }
  }
  finish_strips<kStrips>(a, sums, stride, token_tile * kTileRows, row);
}

struct Tilemap {
  static constexpr bool kTakesConv = false;
  static constexpr bool kNative = true;
  static constexpr int64_t kTileTokens = 0;  // threads that shared tokens would expand each weight again

  static bool is_few(const SpmmArgs& a) { return a.m <= kRegisterTiles * kTileRows; }
  static int64_t workspace_bytes(const SpmmArgs& a) { return TileTokens(a).bytes(); }
  static int64_t scratch_bytes(const SpmmArgs& a) {
    if (is_few(a)) return (kRingTiles + kRegisterTiles) * kTileBytes;
    return (2 * kPairTiles + kChunkStrips * kMostTokenTiles) * kTileBytes;
  }
  static int64_t prepare_items(const SpmmArgs& a) { return prepare_tile_items(a); }
  static void prepare(const SpmmArgs& a, int64_t begin, int64_t end) { prepare_tiles(a, begin, end); }

  static void run(const SpmmArgs& a, int64_t begin, int64_t end, char* scratch) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    const int64_t row = split_rows[begin], strips = (split_rows[end] - row + kTileRows - 1) / kTileRows;
    StripReader reader(a.w, begin);
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
  static void few(const SpmmArgs& a, const TileTokens& x, StripReader& reader, int64_t strips, int64_t row,
                  char* scratch) {
    float* sums = reinterpret_cast<float*>(scratch + kRingTiles * kTileBytes);
    for (; strips >= kStrips; strips -= kStrips, row += kStrips * kTileRows) {
      Strip first[kStrips], now[kStrips];
      for (int s = 0; s < kStrips; ++s) first[s] = now[s] = reader.next();
      multiply_strips<kStrips, kTokenTiles>(x, now, scratch, sums);
      for (int64_t t = 0; t < kTokenTiles; ++t) {
        finish_strips_of<kStrips>(a, x, first, sums + t * kTileRows * R, kTokenTiles * kTileRows * R, t, row);
      }
    }
    if constexpr (kStrips > 1) {
      if (strips > 0) few<kStrips / 2, kTokenTiles>(a, x, reader, strips, row, scratch);
    }
  }

  static void many(const SpmmArgs& a, const TileTokens& x, const StripReader& reader, int64_t strips, int64_t row,
                   char* scratch) {
    const int64_t blocks = (x.tiles + kMostTokenTiles - 1) / kMostTokenTiles;
    for (int64_t block = 0; block < blocks; ++block) {
      StripReader from = reader;
      const int64_t begin = x.tiles * block / blocks, end = x.tiles * (block + 1) / blocks;
      for (int64_t s = 0; s < strips; s += kChunkStrips) {
        const int64_t count = strips - s < kChunkStrips ? strips - s : kChunkStrips;
        chunk(a, x, from, count, row + s * kTileRows, begin, end, scratch);
      }
    }
  }

  // Strips of weights in a panel, tile by tile, in the order in which `step` is called.
  struct Expansion {
    Strip* strips;
    int64_t count, inputs;  // strips, input tiles of the panel
    char* to;               // [strips][kPanelInputs] tiles
    int64_t strip = 0, input = 0;

    SI_INLINE void step() {
      if (strip == count) return;
      expand_tile(strips[strip], to + (strip * kPanelInputs + input) * kTileBytes);
      if (++input == inputs) ++strip, input = 0;
    }
  };

  // `count` strips from `row` on and token tiles [begin, end).
  static void chunk(const SpmmArgs& a, const TileTokens& x, StripReader& reader, int64_t count, int64_t row,
                    int64_t begin, int64_t end, char* scratch) {
    Strip first[kChunkStrips], now[kChunkStrips];
    for (int64_t s = 0; s < count; ++s) first[s] = now[s] = reader.next();
    float* sums = reinterpret_cast<float*>(scratch + 2 * kPairTiles * kTileBytes);
    const int64_t token_step = kTileRows * R, strip_step = (end - begin) * token_step;
    const int64_t pairs = (count + 1) / 2, panels = (x.inputs + kPanelInputs - 1) / kPanelInputs;
    if (panels == 0) memset(sums, 0, static_cast<size_t>(count * strip_step) * sizeof(float));

    // Step i: pair i % pairs of panel i / pairs.
    auto expansion = [&](int64_t i) {
      if (i == panels * pairs) return Expansion{nullptr, 0, 0, nullptr};
      const int64_t s = i % pairs * 2, left = x.inputs - i / pairs * kPanelInputs;
      return Expansion{now + s, count - s < 2 ? 1 : 2, left < kPanelInputs ? left : kPanelInputs,
                       scratch + i % 2 * kPairTiles * kTileBytes};
    };
    Expansion weights = expansion(0);
    for (int64_t i = 0; i < panels * pairs; ++i) {
      while (weights.strip < weights.count) weights.step();
      Expansion next = expansion(i + 1);
      float* to = sums + i % pairs * 2 * strip_step;
      const char* from = x.tile(begin) + i / pairs * kPanelInputs * x.input_bytes();
      for (int64_t t = begin; t < end; t += 2, to += 2 * token_step, from += 2 * x.tile_bytes()) {
        const bool is_pair = t + 1 < end, starts = i < pairs;
        if (weights.count == 2) {
          if (is_pair) panel<2, 2>(x, weights, from, starts, to, strip_step, next);
          if (!is_pair) panel<2, 1>(x, weights, from, starts, to, strip_step, next);
        } else {
          if (is_pair) panel<1, 2>(x, weights, from, starts, to, strip_step, next);
          if (!is_pair) panel<1, 1>(x, weights, from, starts, to, strip_step, next);
        }
      }
      weights = next;
    }
    for (int64_t t = begin; t < end; ++t) {
      float* from = sums + (t - begin) * token_step;
      int64_t s = 0;
      for (; s + 4 <= count; s += 4) {
        finish_strips_of<4>(a, x, first + s, from + s * strip_step, strip_step, t, row + s * kTileRows);
      }
      for (; s < count; ++s) {
        finish_strips_of<1>(a, x, first + s, from + s * strip_step, strip_step, t, row + s * kTileRows);
      }
    }
  }

  // sums += weights . x in one panel, while the next weights are expanded.
  template <int kStrips, int kTokenTiles>
  static void panel(const TileTokens& x, const Expansion& weights, const char* from, bool starts, float* sums,
                    int64_t strip_step, Expansion& next) {
    const int64_t token_step = kTileRows * R;
    if (starts) {
      zero_sums<kStrips, kTokenTiles>();
    } else {
      load_sums<kStrips, kTokenTiles>(sums, strip_step, token_step);
    }
    for (int64_t i = 0; i < weights.inputs; ++i, from += x.input_bytes()) {
      multiply_input<kStrips, kTokenTiles>(
          from, x.tile_bytes(), [&](int s) { return weights.to + (s * kPanelInputs + i) * kTileBytes; },
          [&](int s) {
            if (s == 0) next.step();
          });
    }
    store_sums<kStrips, kTokenTiles>(sums, strip_step, token_step);
  }
};

}  // namespace
}  // namespace sparseinfer
