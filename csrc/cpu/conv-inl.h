// Convolution as a many-token kernel (tiles-inl.h): tokens are pixels of the output, and columns of W are (channel,
// kernel row, kernel column). A tile of x is gathered directly from the images, and sums are written directly to the
// output images. In images as in tiles, pixels are the last dimension, so nothing is transposed.
//
// For one column the inputs of a run of neighbouring pixels lie side by side, `stride_w` apart: a run is a row of the
// output, or all of an image where the output is as wide as the input and strides are 1, with the columns outside of
// the image masked out, so that maps narrower than a vector are copied as quickly as wide ones. Runs are copied in
// whole vectors in ascending order: what is written past the end of one is overwritten by the next, and nothing is
// written past the column. Nothing is read outside of the batch: where a vector would be, elements are copied one by
// one.
#pragma once

#include "cpu/activation-inl.h"
#include "cpu/types-inl.h"
#include "sparseinfer/conv.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {
namespace {

// Rows of y lie far apart, each of them in lines of its own that are fetched before they are written to.
constexpr int64_t kRowsAhead = 8;

// Neighbouring pixels of a tile; `from` is where the first weight of the kernel meets the first of them in channel 0,
// in elements of x. It may lie outside of the image.
struct PixelRun {
  int first, count;
  int64_t from;
};

// The pixels of one tile, from `token` on. Those from `end` on lie outside of every image.
template <int kTokens>
struct Pixels {
  // Where the first weight of the kernel meets each pixel, modulo 2^32: outside at either edge is too large a number.
  uint32_t y[kTokens], x[kTokens];
  PixelRun runs[kTokens];
  int count = 0;

  // Of no convolution: nothing.
  Pixels(const SpmmArgs& a, int64_t token) {
    if (a.conv != nullptr) find(*a.conv, a.first_token + token, a.first_token + a.m);
  }

  void find(const ConvShape& c, int64_t token, int64_t end) {
    const bool aligned = c.stride_h == 1 && c.stride_w == 1 && c.out_w == c.width;
    const int64_t plane = c.out_h * c.out_w;
    int64_t image = token / plane, oy = token % plane / c.out_w, ox = token % c.out_w;
    for (int t = 0; t < kTokens; ++t) {
      if (token + t >= end) {
        y[t] = uint32_t{1} << 31;
        x[t] = 0;
        continue;
      }
      const int64_t down = oy * c.stride_h - c.pad_top, right = ox * c.stride_w - c.pad_left;
      y[t] = static_cast<uint32_t>(down);
      x[t] = static_cast<uint32_t>(right);
      if (t == 0 || (ox == 0 && (oy == 0 || !aligned))) {
        if (count > 0) runs[count - 1].count = t - runs[count - 1].first;
        runs[count++] = {t, 0, image * c.x_image + down * c.width + right};
      }
      if (++ox == c.out_w) {
        ox = 0;
        if (++oy == c.out_h) {
          oy = 0;
          ++image;
        }
      }
    }
    runs[count - 1].count = kTokens - runs[count - 1].first;
  }

  // Negative where the weight `down` and `right` of the first meets a pixel inside the image, else zero.
  void find_inside(const ConvShape& c, int64_t down, int64_t right, float* inside) const {
    const uint32_t dy = static_cast<uint32_t>(down), dx = static_cast<uint32_t>(right);
    const uint32_t height = static_cast<uint32_t>(c.height), width = static_cast<uint32_t>(c.width);
    for (int t = 0; t < kTokens; ++t) inside[t] = (y[t] + dy < height) & (x[t] + dx < width) ? -1.0f : 0.0f;
  }
};

// Whether the channels of the image are the columns of W, and may be read where they lie.
SI_INLINE bool channels_are_columns(const SpmmArgs& a) {
  const ConvShape* c = a.conv;
  return c != nullptr && a.padded && a.dtype == DType::kF32 && c->batch == 1 && c->kernel_h * c->kernel_w == 1 &&
         c->stride_h * c->stride_w == 1 && c->out_h == c->height && c->out_w == c->width && c->pad_top == 0 &&
         c->pad_left == 0;
}

// out[t : t + R] of one column, as far as the column goes.
template <int kTokens>
SI_INLINE void put_pixels(float* out, int t, const float* inside, Row::V v) {
  v = Row::select_negative(Row::load(inside + t), v, Row::zero());
  if (t + R <= kTokens) {
    Row::store(out + t, v);
  } else {
    Row::store_partial(out + t, v, kTokens - t);
  }
}

// One run of one column from x[from], of which `size` elements may be read, to out[kTokens].
template <int kTokens, class T>
SI_INLINE void copy_run(const T* x, int64_t from, int64_t size, int64_t step, const PixelRun& run, const float* inside,
                        float* out) {
  const int end = run.first + run.count;
  if (step == 1 && from >= 0 && from + run.count + R <= size) {
    const T* in = x + from;
    for (int t = run.first; t < end; t += R, in += R) {
      __builtin_prefetch(in + kTokens, 0, 2);  // the next tile's
      put_pixels<kTokens>(out, t, inside, Row::load(in));
    }
  } else if (step == 2 && from >= 0 && from + 2 * (run.count + R) <= size) {
    const T* in = x + from;
    for (int t = run.first; t < end; t += R, in += 2 * R) {
      put_pixels<kTokens>(out, t, inside, Row::evens(Row::load(in), Row::load(in + R)));
    }
  } else if (step > 1 && from >= 0 && from + run.count * step <= size) {
    const T* in = x + from;
    T values[R] = {};
    for (int t = run.first; t < end; t += R) {
      const int here = end - t < R ? end - t : R;
      for (int i = 0; i < here; ++i, in += step) values[i] = *in;
      put_pixels<kTokens>(out, t, inside, Row::load(values));
    }
  } else {
    for (int t = run.first; t < end; ++t, from += step) out[t] = inside[t] < 0.0f ? widen(x[from]) : 0.0f;
  }
}

// One run that is a whole tile, of `count` channels from x[from] on: the vectors that tell what lies inside of the
// image stay in registers.
template <int kTokens, class T>
SI_INLINE void copy_tiles(const T* x, int64_t from, int64_t plane, int64_t count, const float* inside, float* out,
                          int64_t out_step) {
  constexpr int kVectors = kTokens / R;
  typename Row::V keep[kVectors];
  SI_UNROLL
  for (int t = 0; t < kVectors; ++t) keep[t] = Row::load(inside + t * R);
  for (const T* in = x + from; count > 0; --count, in += plane, out += out_step) {
    SI_UNROLL
    for (int t = 0; t < kVectors; ++t) {
      Row::store(out + t * R, Row::select_negative(keep[t], Row::load(in + t * R), Row::zero()));
    }
  }
}

// The x tile of `columns` columns of W from `first` on: out[columns][kTokens].
//
// Loop order: weight of the kernel > channel > run, so that what is inside the image is found once for all channels.
template <int kTokens, class T>
void pack_pixels(const SpmmArgs& a, const Pixels<kTokens>& pixels, int64_t first, int64_t columns, float* out) {
  const ConvShape& c = *a.conv;
  const T* x = static_cast<const T*>(a.x);
  const int64_t plane = c.x_plane, taps = c.kernel_h * c.kernel_w;
  const int64_t size = (c.batch - 1) * c.x_image + (c.channels - 1) * plane + c.height * c.width, step = c.stride_w;
  float inside[kTokens + R] = {};
  for (int64_t i = 0; i < columns && i < taps; ++i) {
    const int64_t tap = (first + i) % taps;
    const int64_t down = tap / c.kernel_w * c.dilation_h, right = tap % c.kernel_w * c.dilation_w;
    pixels.find_inside(c, down, right, inside);
    int64_t from = (first + i) / taps * plane + down * c.width + right, column = i;
    const auto copy_runs = [&](int64_t channels) {
      for (; channels > 0 && column < columns; --channels, column += taps, from += plane) {
        for (int r = 0; r < pixels.count; ++r) {
          const PixelRun run = pixels.runs[r];
          copy_run<kTokens>(x, from + run.from, size, step, run, inside, out + column * kTokens);
        }
      }
    };
    if constexpr (kTokens % R == 0) {
      if (pixels.count == 1 && step == 1) {
        // Vectors of the first channel may begin before the image, and those of the last end behind it.
        const int64_t start = pixels.runs[0].from;
        copy_runs(from + start < 0 ? 1 : 0);
        const int64_t begin = from + start, left = (columns - column + taps - 1) / taps;
        const int64_t within = (size - kTokens - begin + plane) / plane, count = left < within ? left : within;
        if (begin >= 0 && count > 0) {
          copy_tiles<kTokens>(x, begin, plane, count, inside, out + column * kTokens, taps * kTokens);
          from += count * plane;
          column += count * taps;
        }
      }
    }
    copy_runs(columns);
  }
}

// Writes rows of a tile that is whole and lies in one image: sums times factors, plus bias and residual, activated.
template <int kTokens, class T>
struct PixelRows {
  static constexpr int kVectors = kTokens / R;
  const SpmmArgs& a;
  T* y;
  const T* residual;
  bool fits;  // whether the tile is such a one

  PixelRows(const SpmmArgs& args, int64_t token) : a(args) {
    const int64_t plane = a.conv->out_h * a.conv->out_w, at = a.first_token + token, pixel = at % plane;
    fits = kTokens % R == 0 && token + kTokens <= a.m && pixel + kTokens <= plane;
    y = static_cast<T*>(a.y) + at / plane * a.conv->y_image + pixel;
    residual = a.residual != nullptr ? static_cast<const T*>(a.residual) + pixel : nullptr;  // of one image
  }

  SI_INLINE void prefetch(int64_t row) const {
    SI_UNROLL
    for (int t = 0; t < kVectors; ++t) __builtin_prefetch(y + row * a.conv->y_plane + t * R, 1);
  }

  SI_INLINE void put(int64_t row, typename Row::V (&v)[kVectors]) const {
    const typename Row::V factor = Row::set1(a.factors != nullptr ? a.factors[row] : 1.0f);
    const typename Row::V bias = Row::set1(a.bias != nullptr ? bias_at<T>(a, row) : 0.0f);
    SI_UNROLL
    for (int t = 0; t < kVectors; ++t) v[t] = Row::fma(v[t], factor, bias);
    if (residual != nullptr) {
      const T* from = residual + row * a.residual_plane;
      SI_UNROLL
      for (int t = 0; t < kVectors; ++t) v[t] = Row::add(v[t], Row::load(from + t * R));
    }
    activate_all<Row>(v, a.activation);
    T* to = y + row * a.conv->y_plane;
    SI_UNROLL
    for (int t = 0; t < kVectors; ++t) Row::store(to + t * R, v[t]);
  }
};

// sums[rows][kTokens] -> y[image][rows from `row` on][pixels], times factors, plus bias and residual, activated, for
// the pixels from `token` on.
template <int kTokens, class T>
void finish_pixels(const SpmmArgs& a, const float* sums, int64_t row, int64_t rows, int64_t token) {
  if constexpr (kTokens % R == 0) {
    const PixelRows<kTokens, T> whole(a, token);
    if (whole.fits) {
      for (const int64_t end = row + rows; row < end; ++row, sums += kTokens) {
        whole.prefetch(row + kRowsAhead);
        typename Row::V v[kTokens / R];
        SI_UNROLL
        for (int t = 0; t < kTokens / R; ++t) v[t] = Row::load(sums + t * R);
        whole.put(row, v);
      }
      return;
    }
  }
  const int64_t plane = a.conv->out_h * a.conv->out_w, y_plane = a.conv->y_plane, last = a.first_token + a.m;
  int64_t at = a.first_token + token;
  const int64_t end = last - at < kTokens ? last : at + kTokens;
  while (at < end) {
    const int64_t pixel = at % plane, count = end - at < plane - pixel ? end - at : plane - pixel;
    T* y = static_cast<T*>(a.y) + at / plane * a.conv->y_image + row * y_plane + pixel;
    const float* from = sums;
    for (int64_t r = 0; r < rows; ++r, y += y_plane, from += kTokens) {
      const T* residual = static_cast<const T*>(a.residual);  // of one image
      if (residual != nullptr) residual += (row + r) * a.residual_plane + pixel;
      const Row::V factor = Row::set1(a.factors != nullptr ? a.factors[row + r] : 1.0f);
      const Row::V bias = Row::set1(a.bias != nullptr ? bias_at<T>(a, row + r) : 0.0f);
      for (int64_t i = 0; i < count; i += R) {
        __builtin_prefetch(y + kRowsAhead * y_plane + i, 1);
        const int here = count - i < R ? static_cast<int>(count - i) : R;
        Row::V v[1] = {Row::fma(Row::load(from + i), factor, bias)};  // scratch has rows to spare
        if (residual != nullptr) v[0] = Row::add(v[0], Row::load_partial(residual + i, here));
        activate_all<Row>(v, a.activation);
        if (here == R) {
          Row::store(y + i, v[0]);
        } else {
          Row::store_partial(y + i, v[0], here);
        }
      }
    }
    sums += count;
    at += count;
  }
}

}  // namespace
}  // namespace sparseinfer
