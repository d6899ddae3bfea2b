// How `tilemap` holds weights, and how a tile of them is expanded from its masks. Values are read a vector at a time,
// so up to 64 bytes past the last one.
//
// A mask is moved to the signs of the elements of a vector by a broadcast, on the load ports, and a shift, and made a
// mask register by `vpmovw2m` or `vpmovb2m`, on port 0. The packing numbers the bits of a mask such that one shift of
// words (bf16) or of quads (bytes) does it.
//
// Computed, not measured (published port tables of Golden Cove). Expanding a row takes two operations of port 5, 32
// cycles a tile; with masks from `kmovd` or `kmovq`, a third one, it were 48. The masks take port 0 another 32 cycles.
// So a tile of 1024 bytes costs what one of 512 bf16 does. Bytes that become bf16 take both ports three or four
// operations a row more. llvm-mca 14 (-mcpu=sapphirerapids, whose ports are those of Skylake) says 36 cycles a tile of
// bf16, 37 of int8 and 74 of int8 that becomes bf16 for what GCC 12 makes of it: 5.5, 5.8 and 4.2 operations a cycle
// of 6.
#pragma once

#include "cpu/amx_tokens-inl.h"
#include "cpu/steps-inl.h"

namespace sparseinfer {
namespace {

// Weights of pairs of inputs as bf16: bit 16 p + i of a mask, weight 2 i + p of the row of the tile.
struct PairWeights {
  static constexpr Storage kStorage = Storage::kBF16;
  using Mask = uint32_t;
  using Value = uint16_t;

  static SI_INLINE __mmask32 stored(const uint32_t* mask) {
    const __m512i shifts = _mm512_set_epi16(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11,
                                            12, 12, 13, 13, 14, 14, 15, 15);
    __m512i halves;  // from memory: from a register it is an operation of port 5
    __asm__("vpbroadcastd %1, %0" : "=v"(halves) : "m"(*mask));
    return _mm512_movepi16_mask(_mm512_sllv_epi16(halves, shifts));
  }
  static SI_INLINE __m512i expand_row(const uint32_t* mask, const uint16_t* values) {
    return _mm512_maskz_expand_epi16(stored(mask), _mm512_loadu_si512(values));
  }
  template <int C, int A, int B>
  static SI_INLINE void dot() {
    tile::dot_bf16<C, A, B>();
  }
};

// The same held as int8: every one of them is a number of bf16.
struct WidenedWeights : PairWeights {
  static constexpr Storage kStorage = Storage::kWI8;
  using Value = int8_t;

  static SI_INLINE __m512i expand_row(const uint32_t* mask, const int8_t* values) {
    const auto* bytes = reinterpret_cast<const __m128i*>(values);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes + 1)));
    return _mm512_maskz_expand_epi16(stored(mask), reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
};

// Weights of fours of inputs: bit 8 b + 7 - q of a mask, weight 8 q + b of the row of the tile.
struct ByteWeights {
  static constexpr Storage kStorage = Storage::kI8;
  using Mask = uint64_t;
  using Value = int8_t;

  static SI_INLINE __m512i expand_row(const uint64_t* mask, const int8_t* values) {
    const __m512i shifts = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    __m512i bits;
    __asm__("vpbroadcastq %1, %0" : "=v"(bits) : "m"(*mask));
    const __mmask64 stored = _mm512_movepi8_mask(_mm512_sllv_epi64(bits, shifts));
    return _mm512_maskz_expand_epi8(stored, _mm512_loadu_si512(values));
  }
  template <int C, int A, int B>
  static SI_INLINE void dot() {
    tile::dot_u8_i8<C, A, B>();
  }
};

// The next tiles of 16 rows of W: `tiles` of them, and which input tile each meets.
template <class W>
struct Strip {
  const typename W::Mask* masks;
  const typename W::Value* values;
  const uint32_t* inputs;
  int64_t tiles;
};

// Strips in the order of rows, from the first of split `split` on.
template <class W>
class StripReader {
 public:
  StripReader(const PackingHeader* w, int64_t split)
      : w_(w), split_rows_(section<int64_t>(w, w->split_rows)), split_(split), row_(split_rows_[split]) {}

  Strip<W> next() {
    if (w_->panels == 0) return {};
    while (split_rows_[split_ + 1] <= row_) ++split_;
    const Cell& cell = section<Cell>(w_, w_->cells)[split_];
    const int64_t strip = (row_ - split_rows_[split_]) / kTileOutputs;
    const TileStrip* start = section<TileStrip>(w_, w_->counts) + cell.counts + strip;
    const char* masks = section<char>(w_, w_->rows) + cell.rows * kTileRowBytes;
    row_ += kTileOutputs;
    return {reinterpret_cast<const typename W::Mask*>(masks) + start->tiles * kTileRows,
            section<typename W::Value>(w_, w_->values) + cell.values + start->values,
            section<uint32_t>(w_, w_->offsets) + cell.offsets + start->tiles, start[1].tiles - start->tiles};
  }

 private:
  const PackingHeader* w_;
  const int64_t* split_rows_;
  int64_t split_, row_;
};

template <class W>
SI_INLINE void expand_tile(Strip<W>& strip, char* to) {
  // Bytes of half a row: about as far as the values of one move on.
  constexpr int64_t kAhead = kTileRowBytes / 2 / (W::kStorage == Storage::kWI8 ? 2 : 1);
  const auto* const masks = strip.masks;
  const auto* values = strip.values;
  const char* const ahead = reinterpret_cast<const char*>(values) + kPrefetchBytes;
  SI_UNROLL
  for (int row = 0; row < kTileRows; ++row) {
    _mm512_store_si512(to + row * kTileRowBytes, W::expand_row(masks + row, values));
    values += __builtin_popcountll(masks[row]);
    if (row * kAhead % kTileRowBytes == 0) __builtin_prefetch(ahead + row * kAhead);
  }
  strip = {masks + kTileRows, values, strip.inputs + 1, strip.tiles - 1};
}

// Whether the next tiles of two strips, so many of each, lie in the same places.
template <class W>
SI_INLINE bool alike(const Strip<W>& a, int64_t a_tiles, const Strip<W>& b, int64_t b_tiles) {
  if (a_tiles != b_tiles) return false;
  return a_tiles == 0 || memcmp(a.inputs, b.inputs, static_cast<size_t>(a_tiles) * sizeof(uint32_t)) == 0;
}

// sums[16] of one token, from what is stored alone; x is that of the token in the first input tile.
template <class W>
void sum_stored(Strip<W> strip, const char* x, const TileTokens& tokens, float* sums) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < strip.tiles; ++i, strip.masks += kTileRows) {
    const char* input = x + strip.inputs[i] * tokens.input_bytes();
    for (int row = 0; row < kTileRows; ++row) {
      const uint32_t mask = strip.masks[row];
      const __m512i weights = W::expand_row(strip.masks + row, strip.values);
      const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(weights, 16));
      const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(weights, _mm512_set1_epi32(-65536)));
      for (int64_t p = 0; p < tokens.parts; ++p) {
        const BF16* from = reinterpret_cast<const BF16*>(input + p * tokens.part_bytes()) + 2 * row;
        sum = _mm512_mask3_fmadd_ps(even, _mm512_set1_ps(widen(from[0])), sum, static_cast<__mmask16>(mask));
        sum = _mm512_mask3_fmadd_ps(odd, _mm512_set1_ps(widen(from[1])), sum, static_cast<__mmask16>(mask >> 16));
      }
      strip.values += __builtin_popcount(mask);
    }
  }
  _mm512_storeu_ps(sums, sum);
}

}  // namespace
}  // namespace sparseinfer
