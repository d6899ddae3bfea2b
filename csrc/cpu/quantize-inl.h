// int8: rounds tokens of x to 8 bits, and turns sums of products back into real numbers.
//
// x = scale * (q - zero), q and zero in [0, 255], scale and zero of every token from its smallest and largest value and
// 0, which is always exact. One value is (max - min) / 255 apart from the next. A sum over the weights w of a row is
// then scale * (sum of q * w - zero * sum of w), the parts in brackets in int32, exactly (packings/scales.cpp), and y
// that times the row's scale. A scale is at least the smallest normal number: what is far below it counts as zero, as a
// token of zeros does. A NaN or an infinity in a token makes all its results NaN.
// An image of a convolution is rounded as one token is, before its pixels are gathered.
#pragma once

#include <string.h>

#include "cpu/types-inl.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {
namespace {

using Ints = Level::Ints;

// Calls f(vector, first element) for x[k], filled up with zeros.
template <class T, class F>
SI_INLINE void for_vectors(const T* x, int64_t k, F f) {
  int64_t i = 0;
  for (; i + R <= k; i += R) f(Row::load(x + i), i);
  if (i < k) f(Row::load_partial(x + i, static_cast<int>(k - i)), i);
}

template <class T>
ValueRange find_range(const T* x, int64_t k) {
  constexpr int kSets = 4;  // against the latency of each
  Row::V low[kSets], high[kSets], odd[kSets];
  SI_UNROLL
  for (int s = 0; s < kSets; ++s) low[s] = high[s] = odd[s] = Row::zero();
  auto take = [&](Row::V v, int s) {
    low[s] = Row::min(v, low[s]);
    high[s] = Row::max(v, high[s]);
    odd[s] = Row::fma(v, Row::zero(), odd[s]);  // NaN where v is none or not finite
  };
  int64_t i = 0;
  for (; i + kSets * R <= k; i += kSets * R) {
    SI_UNROLL
    for (int s = 0; s < kSets; ++s) take(Row::load(x + i + s * R), s);
  }
  for_vectors(x + i, k - i, [&](Row::V v, int64_t) { take(v, 0); });
  SI_UNROLL
  for (int s = 1; s < kSets; ++s) {
    low[0] = Row::min(low[s], low[0]);
    high[0] = Row::max(high[s], high[0]);
    odd[0] = Row::add(odd[s], odd[0]);
  }
  float lows[R], highs[R], least = 0.0f, most = 0.0f;
  Row::store(lows, low[0]);
  Row::store(highs, high[0]);
  for (int lane = 0; lane < R; ++lane) {
    least = lows[lane] < least ? lows[lane] : least;
    most = highs[lane] > most ? highs[lane] : most;
  }
  return {least, most, Row::sum(odd[0])};
}

SI_INLINE TokenScale scale_of(ValueRange range) {
  constexpr float kLeast = 1.17549435e-38f;
  if (range.odd != range.odd) return {range.odd, 0};
  const float scale = static_cast<float>((static_cast<double>(range.most) - static_cast<double>(range.least)) / 255.0);
  const float used = scale > kLeast ? scale : kLeast;
  return {used, static_cast<int32_t>(0.5f - range.least * (1.0f / used))};
}

template <class T>
TokenScale find_scale(const T* x, int64_t k) {
  return scale_of(find_range(x, k));
}

// x[count] -> out[count], and behind them up to R - 1 bytes more. Zeros for a token without a scale.
template <class T>
SI_INLINE void quantize(const T* x, int64_t count, TokenScale token, uint8_t* out) {
  if (!(token.scale > 0.0f)) {
    memset(out, 0, static_cast<size_t>(count));
    return;
  }
  const Row::V inverse = Row::set1(1.0f / token.scale);
  for_vectors(x, count, [&](Row::V v, int64_t i) { Ints::store_bytes(out + i, Row::mul(v, inverse), token.zero); });
}

// The values of one channel of an image.
template <class T>
SI_INLINE const T* channel_of(const SpmmArgs& a, int64_t piece) {
  const ConvShape& c = *a.conv;
  return static_cast<const T*>(a.x) + piece / c.channels * c.x_image + piece % c.channels * c.height * c.width;
}

// SpmmKernel::find_ranges
static inline void find_ranges(const SpmmArgs& a, ValueRange* ranges, int64_t begin, int64_t end) {
  const int64_t plane = a.conv->height * a.conv->width;
  with_type(a.dtype, [&](auto type) {
    for (int64_t i = begin; i < end; ++i) ranges[i] = find_range(channel_of<decltype(type)>(a, i), plane);
  });
}

// The scale of all channels of an image: what lies outside of it is 0, which is exact.
static inline TokenScale image_scale(const ValueRange* channels, int64_t count) {
  ValueRange all = {0.0f, 0.0f, 0.0f};
  for (int64_t i = 0; i < count; ++i) {
    all.least = channels[i].least < all.least ? channels[i].least : all.least;
    all.most = channels[i].most > all.most ? channels[i].most : all.most;
    all.odd += channels[i].odd;
  }
  return scale_of(all);
}

// SpmmKernel::round_images
static inline void round_images(const SpmmArgs& a, const ValueRange* ranges, int64_t begin, int64_t end) {
  const int64_t channels = a.conv->channels, plane = a.conv->height * a.conv->width, whole = plane / R * R;
  TokenScale scale = {0.0f, 0};
  for (int64_t i = begin; i < end; ++i) {
    if (i == begin || i % channels == 0) scale = image_scale(ranges + i / channels * channels, channels);
    if (i % channels == 0) a.image_scales[i / channels] = scale;
    with_type(a.dtype, [&](auto type) {
      const auto* x = channel_of<decltype(type)>(a, i);
      uint8_t last[R];  // whole vectors are written, and behind these lies the next channel
      quantize(x, whole, scale, a.bytes + i * plane);
      quantize(x + whole, plane - whole, scale, last);
      if (plane > whole) memcpy(a.bytes + i * plane + whole, last, static_cast<size_t>(plane - whole));
    });
  }
}

// The token whose bytes lie at a position of a tile [columns][kTokens], such that interleaving four columns, which
// works in parts of 16 bytes, gives sums in the order of the tokens.
template <int kTokens>
constexpr int token_at(int position) {
  constexpr int kLanes = kTokens / 4;
  return kLanes < 4 ? position : position / 4 % 4 * kLanes + position / 16 * 4 + position % 4;
}

// Scales of the tokens of one tile.
template <int kTokens>
struct TileScales {
  float scales[kTokens];
  int32_t zeros[kTokens];
};

// x[the tokens of positions from `group` on, columns from `first` on] -> bytes [16 tokens][256 columns] of which
// `count` are those of x.
constexpr int kByteGroup = 16, kByteColumns = 256;
// Rows of whole quads, which tiles of quads read as such.
using ByteRows = uint8_t[kByteGroup][kByteColumns + (R < 4 ? 4 : R)];

// bytes[kGroup][count] -> out[count][kTokens]
template <int kTokens, int kGroup>
SI_INLINE void turn_group(const ByteRows& bytes, int64_t count, uint8_t* out) {
  const uint8_t* rows[kByteGroup];
  for (int i = 0; i < kByteGroup; ++i) rows[i] = bytes[i];
  int64_t c = 0;
#if !defined(SI_LEVEL_SCALAR)
  for (; c + kByteGroup <= count; c += kByteGroup) turn_bytes(rows, c, out + c * kTokens, kTokens);
#endif
  for (; c < count; ++c) {
    for (int i = 0; i < kGroup; ++i) out[c * kTokens + i] = rows[i][c];
  }
}

// sums[rows][kTokens] of int32 -> real numbers, in place.
template <class Vec, int kTokens, int kTileTokens>
void make_real(const PackingHeader* w, float* sums, int64_t row, int64_t rows, const TileScales<kTileTokens>& tile) {
  using F = typename Vec::Floats;
  const float* row_scales = section<float>(w, w->scales) + row;
  const int32_t* row_sums = section<int32_t>(w, w->row_sums) + row;
  for (int64_t r = 0; r < rows; ++r, sums += kTokens) {
    const auto sum = Vec::set1(row_sums[r]);
    const auto scale = F::set1(row_scales[r]);
    SI_UNROLL
    for (int t = 0; t < kTokens; t += Vec::L) {
      const auto zeros = Vec::load(tile.zeros + t);
      F::store(sums + t, Vec::real(Vec::load(sums + t), zeros, sum, scale, F::load(tile.scales + t)));
    }
  }
}

// Sums of R rows of one token.
SI_INLINE Row::V real_rows(const PackingHeader* w, Ints::V sum, TokenScale token, int64_t row, int count) {
  const Row::V sums = Row::load_partial(section<float>(w, w->row_sums) + row, count);
  const Row::V scales = Row::load_partial(section<float>(w, w->scales) + row, count);
  return Ints::real(sum, Ints::bits(sums), Ints::set1(token.zero), scales, Row::set1(token.scale));
}

}  // namespace
}  // namespace sparseinfer
