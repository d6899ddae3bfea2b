// The common part of the kernels on tiles: x as tiles, and the way from tiles of sums to y.
//
// x is copied once per call into tiles, [token tile][input tile][part][rows][64 bytes], where strided loads from x
// itself would meet few sets of the cache. A token tile has 16 rows, zeros past the last token; fewer than 16 tokens
// are one tile of so many rows. Columns past k meet weights of zero.
//
// Storage bf16: a row is 32 columns, rounded to bf16, zeros past k. Storage wi8, whose x is not rounded: the same in as
// many parts as it takes to add up to x exactly, 3 of fp32, 2 of fp16; what a part has below 2^-126 is lost, as tiles
// take it for zero. Behind the tiles: uint32 [token tile][chunk of input tiles], bit r set where token r has an
// infinity or NaN there, which a kernel must not multiply by zeros that it does not store.
//
// Storage i8: a row is 64 columns as unsigned bytes; behind the tiles lies the TokenScale of each token. Bytes with a
// zero point use all of their range where x is not symmetric, as behind an activation, and mean the same as in the
// other kernels for i8, to the last bit; signed ones are not multiplied faster.
//
// Of a convolution, 16 pixels at a time are gathered and turned: bytes to tiles, others to rows of fp32 first, in the
// last part of the workspace.
#pragma once

#include <string.h>

#include "cpu/amx.h"
#include "cpu/conv_bytes-inl.h"
#include "cpu/rows-inl.h"

namespace sparseinfer {
namespace {

constexpr int64_t kChunkInputs = 16;     // input tiles that one item of `prepare` copies; chosen, not measured
constexpr int64_t kUnfoldColumns = 256;  // gathered before they are turned: 16 KB

// Calls f(Int<0>), ..., f(Int<N - 1>): numbers of tile registers are part of the instruction.
template <int N, class F>
SI_INLINE void for_each(F f) {
  if constexpr (N > 0) {
    for_each<N - 1>(f);
    f(Int<N - 1>{});
  }
}

// in[16][16], `in_step` apart -> out[16][16], turned, `out_step` apart.
SI_INLINE void turn_tile(const float* in, int64_t in_step, float* out, int64_t out_step) {
  using Turn = Level::Transposer;
  for (int row = 0; row < kTileRows; row += Turn::L) {
    const float* rows[Turn::L];
    for (int i = 0; i < Turn::L; ++i) rows[i] = in + (row + i) * in_step;
    for (int column = 0; column < kTileRows; column += Turn::L) {
      Turn::to_columns<Turn::L>(rows, column, out + column * out_step + row, out_step);
    }
  }
}

// bytes [4][16] -> [16][4]
SI_INLINE void interleave_fours(const uint8_t* bytes, float* out) {
  const __m128i* in = reinterpret_cast<const __m128i*>(bytes);
  const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1), c = _mm_loadu_si128(in + 2),
                d = _mm_loadu_si128(in + 3);
  const __m128i pairs[4] = {_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(a, b),
                            _mm_unpackhi_epi8(c, d)};
  __m128i* to = reinterpret_cast<__m128i*>(out);
  _mm_storeu_si128(to, _mm_unpacklo_epi16(pairs[0], pairs[1]));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(pairs[0], pairs[1]));
  _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(pairs[2], pairs[3]));
  _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(pairs[2], pairs[3]));
}

struct TileTokens {
  bool bytes;
  int64_t tiles, rows, inputs, parts, chunks;
  int64_t unfolded;  // floats of an unfolded row; 0: none is
  char* data;

  explicit TileTokens(const SpmmArgs& a)
      : bytes(a.w->storage == Storage::kI8),
        tiles((a.m + kTileRows - 1) / kTileRows),
        rows(a.m < kTileRows ? a.m : kTileRows),
        inputs((a.w->k + tile_inputs(a.w->storage) - 1) / tile_inputs(a.w->storage)),
        parts(a.w->storage != Storage::kWI8 || a.dtype == DType::kBF16 ? 1
              : a.dtype == DType::kF16                                 ? 2
                                                                       : 3),
        chunks((inputs + kChunkInputs - 1) / kChunkInputs),
        unfolded(a.conv != nullptr && !bytes ? (a.w->k + R - 1) / R * R : 0),
        data(a.workspace) {}

  int64_t part_bytes() const { return rows * kTileRowBytes; }
  int64_t input_bytes() const { return parts * part_bytes(); }
  int64_t tile_bytes() const { return inputs * input_bytes(); }
  const char* tile(int64_t t) const { return data + t * tile_bytes(); }

  int64_t notes_bytes() const {  // of a token tile
    return bytes ? kTileRows * static_cast<int64_t>(sizeof(TokenScale)) : chunks * 4;
  }
  char* notes(int64_t t) const { return data + tiles * tile_bytes() + t * notes_bytes(); }
  uint32_t* hostile(int64_t t) const { return reinterpret_cast<uint32_t*>(notes(t)); }
  TokenScale* scales(int64_t t) const { return reinterpret_cast<TokenScale*>(notes(t)); }

  int64_t unfolded_at() const { return (tiles * (tile_bytes() + notes_bytes()) + 63) / 64 * 64; }
  float* unfolded_rows(int64_t t) const {
    return reinterpret_cast<float*>(data + unfolded_at()) + t * kTileRows * unfolded;
  }
  int64_t workspace_bytes() const { return unfolded_at() + tiles * kTileRows * unfolded * 4; }

  // Bit r: token r of the tile has an infinity or NaN.
  uint32_t hostile_tokens(int64_t t) const {
    uint32_t any = 0;
    for (int64_t c = 0; c < chunks; ++c) any |= hostile(t)[c];
    return any;
  }
};

// 32 values as bf16 in `kParts` parts, the first of them rounded towards zero but for the last: each takes the leading
// 8 bits of what is left. Returns which values are not finite; other parts of those are zeros.
template <int kParts>
SI_INLINE __mmask32 put_parts(__m512 low, __m512 high, char* out, int64_t part_bytes) {
  constexpr int kNotFinite = 0x99;
  const __m512i leading = _mm512_set1_epi32(-65536), exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 hostile = 0;
  for_each<kParts>([&](auto part) {
    constexpr int P = decltype(part)::value;
    __m512 values[2] = {low, high};
    if constexpr (P + 1 < kParts) {
      SI_UNROLL
      for (__m512& v : values) {
        const __mmask16 finite = static_cast<__mmask16>(~_mm512_fpclass_ps_mask(v, kNotFinite));
        const __m512i bits = _mm512_castps_si512(v);
        v = _mm512_castsi512_ps(_mm512_mask_and_epi32(bits, finite, bits, leading));
      }
      low = _mm512_maskz_sub_ps(static_cast<__mmask16>(~_mm512_fpclass_ps_mask(low, kNotFinite)), low, values[0]);
      high = _mm512_maskz_sub_ps(static_cast<__mmask16>(~_mm512_fpclass_ps_mask(high, kNotFinite)), high, values[1]);
    }
    const __m512i pairs = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(values[1], values[0]));
    if constexpr (P == 0) hostile = _mm512_cmpeq_epi16_mask(_mm512_and_si512(pairs, exponent), exponent);
    _mm512_store_si512(out + P * part_bytes, pairs);
  });
  return hostile;
}

// Input tiles [first, last) of one token; returns whether it has an infinity or NaN there.
static inline bool copy_token(const BF16* x, int64_t k, int64_t first, int64_t last, const TileTokens& to, char* out) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 hostile = 0;
  for (int64_t i = first; i < last; ++i, out += to.input_bytes()) {
    const int64_t left = k - i * 2 * R, count = left < 2 * R ? left : 2 * R;
    const auto here = static_cast<__mmask32>(~uint64_t{0} >> (64 - count));
    const __m512i values = _mm512_maskz_loadu_epi16(here, x + i * 2 * R);
    hostile |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(values, exponent), exponent);
    _mm512_store_si512(out, values);
  }
  return hostile != 0;
}
template <int kParts, class T>
bool copy_token(const T* x, int64_t k, int64_t first, int64_t last, const TileTokens& to, char* out) {
  __mmask32 hostile = 0;
  auto load = [](const T* from, int64_t left) __attribute__((always_inline)) {
    return left >= R ? Row::load(from) : left > 0 ? Row::load_partial(from, static_cast<int>(left)) : Row::zero();
  };
  for (int64_t i = first; i < last; ++i, out += to.input_bytes()) {
    const int64_t at = i * 2 * R;
    hostile |= put_parts<kParts>(load(x + at, k - at), load(x + at + R, k - at - R), out, to.part_bytes());
  }
  return hostile != 0;
}
template <class T>
bool copy_token(const T* x, int64_t k, int64_t first, int64_t last, const TileTokens& to, char* out) {
  if (to.parts == 1) return copy_token<1>(x, k, first, last, to, out);
  if (to.parts == 2) return copy_token<2>(x, k, first, last, to, out);
  return copy_token<3>(x, k, first, last, to, out);
}

// A chunk of the input tiles of a token tile; its tokens are rows of x, `ldx` elements apart.
template <class T>
void prepare_pairs(const TileTokens& to, const T* x, int64_t ldx, int64_t k, int64_t tile, int64_t tokens,
                   int64_t chunk) {
  const int64_t first = chunk * kChunkInputs, end = first + kChunkInputs, last = end < to.inputs ? end : to.inputs;
  uint32_t hostile = 0;
  for (int64_t r = 0; r < to.rows; ++r, x += ldx) {
    char* out = to.data + tile * to.tile_bytes() + first * to.input_bytes() + r * kTileRowBytes;
    if (r < tokens) {
      if (copy_token(x, k, first, last, to, out)) hostile |= uint32_t{1} << r;
    } else {
      const int64_t rows = (last - first) * to.parts;
      for (int64_t i = 0; i < rows; ++i) _mm512_store_si512(out + i * to.part_bytes(), _mm512_setzero_si512());
    }
  }
  to.hostile(tile)[chunk] = hostile;
}

// Row r of a token tile of bytes: a token of x, or zeros.
template <class T>
void prepare_bytes(const TileTokens& to, const T* x, int64_t k, int64_t tile, int64_t r, bool is_token) {
  const TokenScale scale = is_token ? find_scale(x, k) : TokenScale{0.0f, 0};
  char* out = to.data + tile * to.tile_bytes() + r * kTileRowBytes;
  for (int64_t column = 0; column < k; column += kTileRowBytes, out += to.input_bytes()) {
    const int64_t left = k - column, count = left < kTileRowBytes ? left : kTileRowBytes;
    if (count < kTileRowBytes) _mm512_store_si512(out, _mm512_setzero_si512());
    if (is_token) {
      quantize(x + column, count, scale, reinterpret_cast<uint8_t*>(out));
    } else {
      _mm512_store_si512(out, _mm512_setzero_si512());
    }
  }
  to.scales(tile)[r] = scale;
}

// The pixels of a token tile from `token` of the pass on, as rows.
template <class T>
void unfold(const SpmmArgs& a, const TileTokens& to, int64_t token, float* rows) {
  const Pixels<kTileRows> pixels(a, token);
  float gathered[(kUnfoldColumns + R) * kTileRows];
  for (int64_t first = 0; first < a.w->k; first += kUnfoldColumns) {
    const int64_t left = a.w->k - first, columns = left < kUnfoldColumns ? left : kUnfoldColumns;
    pack_pixels<kTileRows, T>(a, pixels, first, columns, gathered);
    memset(gathered + columns * kTileRows, 0, R * kTileRows * sizeof(float));
    for (int64_t c = 0; c < columns; c += R) {
      turn_tile(gathered + c * kTileRows, kTileRows, rows + first + c, to.unfolded);
    }
  }
}

// The same as tiles of bytes, from images of bytes.
static inline void unfold_bytes(const SpmmArgs& a, const TileTokens& to, int64_t tile) {
  const int64_t token = tile * kTileRows, plane = a.conv->out_h * a.conv->out_w, k = a.w->k;
  int32_t zeros[kTileRows];
  for (int64_t r = 0; r < kTileRows; ++r) {
    const bool there = token + r < a.m;
    const TokenScale own = there ? a.image_scales[(a.first_token + token + r) / plane] : TokenScale{0.0f, 0};
    to.scales(tile)[r] = own;
    zeros[r] = own.zero;
  }
  uint8_t gathered[(kUnfoldColumns + kTileRowBytes) * kTileRows];
  char* out = to.data + tile * to.tile_bytes();
  for (int64_t first = 0; first < k; first += kUnfoldColumns) {
    const int64_t columns = k - first < kUnfoldColumns ? k - first : kUnfoldColumns;
    pack_pixel_bytes<kTileRows>(a, token, first, columns, zeros, gathered);
    memset(gathered + columns * kTileRows, 0, kTileRowBytes * kTileRows);
    for (int64_t c = 0; c < columns; c += kTileRowBytes, out += to.input_bytes()) {
      float fours[kTileSteps * kTileRows], rows[kTileRows * kTileSteps];  // four columns of a pixel each
      for (int64_t step = 0; step < kTileSteps; ++step) {
        interleave_fours(gathered + (c + 4 * step) * kTileRows, fours + step * kTileRows);
      }
      turn_tile(fours, kTileRows, rows, kTileSteps);
      memcpy(out, rows, static_cast<size_t>(to.part_bytes()));
    }
  }
}

// Pieces of work: a chunk of a token tile, or a token of bytes; of a convolution, a token tile.
static inline int64_t prepare_tile_items(const SpmmArgs& a) {
  const TileTokens x(a);
  return x.tiles * (a.conv != nullptr ? 1 : x.bytes ? x.rows : x.chunks);
}

static inline void prepare_tiles(const SpmmArgs& a, int64_t begin, int64_t end) {
  const TileTokens to(a);
  const int64_t k = a.w->k, per_tile = a.conv != nullptr ? 1 : to.bytes ? to.rows : to.chunks;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tile = item / per_tile, token = tile * kTileRows, part = item % per_tile;
    const int64_t tokens = a.m - token < to.rows ? a.m - token : to.rows;
    with_type(a.dtype, [&](auto type) {
      using T = decltype(type);
      if (a.conv != nullptr && to.bytes) return unfold_bytes(a, to, tile);
      if (a.conv != nullptr) {
        float* rows = to.unfolded_rows(tile);
        unfold<T>(a, to, token, rows);
        for (int64_t c = 0; c < to.chunks; ++c) prepare_pairs(to, rows, to.unfolded, k, tile, tokens, c);
        return;
      }
      const T* x = static_cast<const T*>(a.x) + token * a.ldx;
      if (to.bytes) {
        prepare_bytes(to, part < tokens ? x + part * a.ldx : nullptr, k, tile, part, part < tokens);
      } else {
        prepare_pairs(to, x, a.ldx, k, tile, tokens, part);
      }
    });
  }
}

// sums [kStrips][16 tokens][16 outputs], `stride` floats from strip to strip -> y[tokens from `token` on, rows from
// `row` on] + bias, activated. Rows past n are left out. Of i8 they are int32, and are made real; of a convolution they
// are overwritten.
template <Storage kStorage, int kStrips>
struct StripFinish {
  const SpmmArgs& a;
  const TileTokens& x;
  float* sums;
  int64_t stride, token, row;

  // Of sums of products of integers.
  Row::V scale[kStrips];
  Ints::V row_sum[kStrips];

  SI_INLINE int count(int s) const {
    const int64_t rows = a.w->n - row - s * R;
    return rows < R ? static_cast<int>(rows) : R;
  }
  SI_INLINE void load_scales() {
    if constexpr (kStorage != Storage::kBF16) {
      SI_UNROLL
      for (int s = 0; s < kStrips; ++s) {
        scale[s] = Row::load_partial(section<float>(a.w, a.w->scales) + row + s * R, count(s));
        if constexpr (kStorage == Storage::kI8) {
          row_sum[s] = Ints::bits(Row::load_partial(section<float>(a.w, a.w->row_sums) + row + s * R, count(s)));
        }
      }
    }
  }
  SI_INLINE Row::V real(const float* from, int s, int64_t t) const {
    if constexpr (kStorage == Storage::kI8) {
      const TokenScale own = x.scales(token / kTileRows)[t];
      Row::V v = Ints::real(Ints::load(from), row_sum[s], Ints::set1(own.zero), scale[s], Row::set1(own.scale));
      __asm__("" : "+v"(v));  // rounded before a bias is added: no fused multiply-add, as in the other kernels
      return v;
    } else if constexpr (kStorage == Storage::kWI8) {
      return Row::mul(Row::load(from), scale[s]);
    } else {
      return Row::load(from);
    }
  }

  template <class T>
  void rows_of(int64_t tokens) const {
    const Activation activation = a.activation;
    T* y = static_cast<T*>(a.y) + token * a.ldy + row;
    Row::V bias[kStrips];
    SI_UNROLL
    for (int s = 0; s < kStrips; ++s) bias[s] = a.bias ? load_bias<Row, T>(a, row + s * R, count(s)) : Row::zero();
    for (int64_t t = 0; t < tokens; ++t, y += a.ldy) {
      Row::V v[kStrips];
      SI_UNROLL
      for (int s = 0; s < kStrips; ++s) v[s] = Row::add(real(sums + s * stride + t * R, s, t), bias[s]);
      activate_all<Row>(v, activation);
      SI_UNROLL
      for (int s = 0; s < kStrips; ++s) Row::store_partial(y + s * R, v[s], count(s));
    }
  }

  template <class T>
  void pixels_of(int64_t tokens) const {
    float turned[(kTileRows + 1) * kTileRows];
    for (int s = 0; s < kStrips; ++s) {
      float* from = sums + s * stride;
      for (int64_t t = 0; t < tokens; ++t) Row::store(from + t * R, real(from + t * R, s, t));
      turn_tile(from, R, turned, kTileRows);
      finish_pixels<kTileRows, T>(a, turned, row + s * R, count(s), token);
    }
  }

  void run() {
    load_scales();
    const int64_t left = a.m - token, tokens = left < kTileRows ? left : kTileRows;
    with_type(a.dtype, [&](auto type) {
      if (a.conv != nullptr) return pixels_of<decltype(type)>(tokens);
      rows_of<decltype(type)>(tokens);
    });
  }
};
template <Storage kStorage, int kStrips>
void finish_strips(const SpmmArgs& a, const TileTokens& x, float* sums, int64_t stride, int64_t token, int64_t row) {
  StripFinish<kStorage, kStrips>{a, x, sums, stride, token, row, {}, {}}.run();
}

}  // namespace
}  // namespace sparseinfer
