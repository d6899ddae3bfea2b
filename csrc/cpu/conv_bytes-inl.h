// Gathers tiles of bytes from images of bytes, for convolutions of storage i8 (conv-inl.h has those of floats). What
// lies outside of an image is its zero point, which stands for 0 exactly.
//
// A vector is a column of a tile: one byte of each pixel. For every run of pixels it is loaded such that the run's
// first pixel is at its place; the runs' vectors, masked, are put together in registers. So up to a vector is read
// before and behind a run, two where the stride is 2: images have margins.
#pragma once

#include <string.h>

#include "cpu/conv-inl.h"
#include "cpu/quantize-inl.h"

namespace sparseinfer {
namespace {

// Vectors of a compiler, in whatever registers there are. Typedefs, because such attributes of templates get lost.
template <int kTokens>
struct ByteVectors;
#define SI_BYTE_VECTORS(tokens)                                      \
  template <>                                                        \
  struct ByteVectors<tokens> {                                       \
    typedef uint8_t V __attribute__((vector_size(tokens)));          \
    typedef uint32_t Dwords __attribute__((vector_size(tokens)));    \
    typedef uint16_t Words __attribute__((vector_size(2 * tokens))); \
  }
SI_BYTE_VECTORS(4);
SI_BYTE_VECTORS(16);
SI_BYTE_VECTORS(32);
SI_BYTE_VECTORS(64);
#undef SI_BYTE_VECTORS

template <int kTokens>
struct PixelBytes {
  static_assert(2 * kTokens <= kImageMargin);
  using V = typename ByteVectors<kTokens>::V;
  using Words = typename ByteVectors<kTokens>::Words;
  using Dwords = typename ByteVectors<kTokens>::Dwords;

  const ConvShape& conv;
  Pixels<kTokens> pixels;
  V outside;              // the zero point of each pixel's image
  V in_run[kTokens];      // the pixels of each run that lie inside of the image
  bool is_seen[kTokens];  // whether there is one

  PixelBytes(const SpmmArgs& a, int64_t token, const int32_t* zeros) : conv(*a.conv), pixels(a, token) {
    uint8_t bytes[kTokens];
    for (int t = 0; t < kTokens; ++t) bytes[t] = static_cast<uint8_t>(zeros[t]);
    memcpy(&outside, bytes, sizeof outside);
  }

  // Of one weight of the kernel.
  void find_inside(int64_t down, int64_t right) {
    const uint32_t dy = static_cast<uint32_t>(down), dx = static_cast<uint32_t>(right);
    const uint32_t height = static_cast<uint32_t>(conv.height), width = static_cast<uint32_t>(conv.width);
    uint8_t inside[kTokens];
    for (int t = 0; t < kTokens; ++t) {
      inside[t] = (pixels.y[t] + dy < height) & (pixels.x[t] + dx < width) ? uint8_t{255} : uint8_t{0};
    }
    for (int r = 0; r < pixels.count; ++r) {
      const PixelRun run = pixels.runs[r];
      uint8_t bytes[kTokens] = {};
      int any = 0;
      for (int t = run.first; t < run.first + run.count; ++t) any |= bytes[t] = inside[t];
      memcpy(&in_run[r], bytes, sizeof bytes);
      is_seen[r] = any != 0;
    }
  }

  // The bytes of run `r` of one column, from x[from] on, each at its pixel's place; others are any.
  SI_INLINE void load(const uint8_t* x, int64_t from, int r, V* out) const {
    const int64_t step = conv.stride_w;
    const PixelRun& run = pixels.runs[r];
    const uint8_t* in = x + from + run.from - step * run.first;
    if (step == 1) {
      memcpy(out, in, sizeof *out);
    } else if (step == 2) {
      Words both;
      memcpy(&both, in, sizeof both);
      *out = __builtin_convertvector(both, V);  // the lower bytes
    } else {
      uint8_t bytes[kTokens] = {};
      uint8_t inside[kTokens];
      memcpy(inside, &in_run[r], sizeof inside);
      for (int t = run.first; t < run.first + run.count; ++t) {
        if (inside[t] != 0) bytes[t] = in[t * step];
      }
      memcpy(out, bytes, sizeof bytes);
    }
  }

  // Where the tile wants the bytes of the tokens (token_at).
  static SI_INLINE void store(const V& v, uint8_t* out) {
    Dwords d;
    memcpy(&d, &v, sizeof d);
    if constexpr (kTokens == 64) {
      d = __builtin_shufflevector(d, d, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    } else if constexpr (kTokens == 32) {
      d = __builtin_shufflevector(d, d, 0, 2, 4, 6, 1, 3, 5, 7);
    }
    memcpy(out, &d, sizeof d);
  }
};

// As pack_pixels: out[columns][kTokens].
template <int kTokens>
void pack_pixel_bytes(const SpmmArgs& a, int64_t token, int64_t first, int64_t columns, const int32_t* zeros,
                      uint8_t* out) {
  static_assert(kTokens <= 16 || token_at<kTokens>(4) == kTokens / 4, "the order that `store` makes");
  const ConvShape& c = *a.conv;
  PixelBytes<kTokens> bytes(a, token, zeros);
  using V = typename PixelBytes<kTokens>::V;
  const int64_t plane = c.height * c.width, taps = c.kernel_h * c.kernel_w;
  for (int64_t i = 0; i < columns && i < taps; ++i) {
    const int64_t tap = (first + i) % taps;
    const int64_t down = tap / c.kernel_w * c.dilation_h, right = tap % c.kernel_w * c.dilation_w;
    bytes.find_inside(down, right);
    int64_t from = (first + i) / taps * plane + down * c.width + right;
    for (int64_t column = i; column < columns; column += taps, from += plane) {
      V v = bytes.outside;
      for (int r = 0; r < bytes.pixels.count; ++r) {
        if (!bytes.is_seen[r]) continue;
        V here;
        bytes.load(a.bytes, from, r, &here);
        v = (here & bytes.in_run[r]) | (v & ~bytes.in_run[r]);
      }
      PixelBytes<kTokens>::store(v, out + column * kTokens);
    }
  }
}

// sums[rows][kTokens], of integers, times the scales of their rows.
template <class Vec, int kTokens>
void scale_rows(const PackingHeader* w, float* sums, int64_t row, int64_t rows) {
  const float* scales = section<float>(w, w->scales) + row;
  for (int64_t r = 0; r < rows; ++r) {
    const auto scale = Vec::set1(scales[r]);
    for (int t = 0; t < kTokens; t += Vec::L, sums += Vec::L) Vec::store(sums, Vec::mul(Vec::load(sums), scale));
  }
}

}  // namespace
}  // namespace sparseinfer
