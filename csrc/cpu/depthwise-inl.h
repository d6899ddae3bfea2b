// Depthwise convolution of images (image_ops.h). Usual windows are those of windows-inl.h; with others, a band of rows
// of one channel is computed at a time.
//
// The band of the image is copied to a buffer in L1 with its padding, for strides of s_h x s_w as so many phases: then
// every tap reads neighbours. Rows of all phases and of the result have one pitch, so that pixel (row, column) of the
// result is number row * pitch + column of the band, and a tap is one distance for all of them: short rows fill whole
// vectors. What is computed between the rows is left out when they are finished.
#pragma once

#include "cpu/images-inl.h"

namespace sparseinfer {
namespace {

constexpr int64_t kBandFloats = 4096;  // of the image's band, and as many of the result's: both are in L1
constexpr int64_t kMostTaps = 128;
constexpr int kBandVectors = 8;
constexpr int64_t kBandSlack = kBandVectors * R;  // read and written behind the last pixel

// How an image is cut into bands; `rows` of the result in each, none if a row is too long.
struct Bands {
  int64_t rows, pitch;
  int64_t phases_h, phases_w, phase_rows;
  int64_t tap_count;
  int32_t taps[kMostTaps];  // where each tap lies from the first one on

  Bands(const PoolWindow& w, int64_t out_h, int64_t out_w) : rows(0) {
    const int64_t reach_h = (w.kernel_h - 1) * w.dilation_h, reach_w = (w.kernel_w - 1) * w.dilation_w;
    const int64_t down = reach_h / w.stride_h;
    pitch = out_w + reach_w / w.stride_w;
    phases_h = w.stride_h <= reach_h ? w.stride_h : reach_h + 1;
    phases_w = w.stride_w <= reach_w ? w.stride_w : reach_w + 1;
    if (w.kernel_h > kMostTaps || w.kernel_w > kMostTaps || w.kernel_h * w.kernel_w > kMostTaps) return;
    if (phases_h > kMostTaps || phases_w > kMostTaps || pitch > kBandFloats) return;
    const int64_t fit = kBandFloats / (phases_h * phases_w * pitch) - down;
    if (fit < 1) return;
    rows = fit < out_h ? fit : out_h;
    phase_rows = rows + down;
    tap_count = w.kernel_h * w.kernel_w;
    for (int64_t ky = 0; ky < w.kernel_h; ++ky) {
      for (int64_t kx = 0; kx < w.kernel_w; ++kx) {
        const int64_t y = ky * w.dilation_h, x = kx * w.dilation_w;
        const int64_t phase = y % w.stride_h * phases_w + x % w.stride_w;
        const int64_t at = (phase * phase_rows + y / w.stride_h) * pitch + x / w.stride_w;
        taps[ky * w.kernel_w + kx] = static_cast<int32_t>(at);
      }
    }
  }
};

// Every `step`-th of x to out[count].
SI_INLINE void copy_pixels(const float* x, int64_t step, int64_t count, float* out) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + R <= count; i += R) Row::store(out + i, Row::load(x + i));
    if (i < count)
      Row::store_partial(out + i, Row::load_partial(x + i, static_cast<int>(count - i)), static_cast<int>(count - i));
    return;
  }
  // The last vector would read one pixel more than there has to be.
  for (; step == 2 && i + R < count; i += R)
    Row::store(out + i, Row::evens(Row::load(x + 2 * i), Row::load(x + 2 * i + R)));
  for (; i < count; ++i) out[i] = x[i * step];
}

// Row `down` of the image, if it is one, from column `right` on, with zeros around it: out[pitch].
SI_INLINE void copy_row(const ImagePlanes& x, const float* plane, int64_t down, int64_t right, int64_t step,
                        int64_t pitch, float* out) {
  Inside in = inside_of(right, step, x.width, pitch);
  if (down < 0 || down >= x.height || in.first >= in.last) in.first = in.last = pitch;
  for (int64_t i = 0; i < in.first; ++i) out[i] = 0.0f;
  if (in.first < in.last) copy_pixels(plane + down * x.width + in.from, step, in.last - in.first, out + in.first);
  for (int64_t i = in.last; i < pitch; ++i) out[i] = 0.0f;
}

// out[N * R] = the sums over all taps, in order.
template <int N>
SI_INLINE void sum_taps(const float* band, const Bands& b, const float* weights, float* out) {
  Row::V sums[N];
  SI_UNROLL
  for (int i = 0; i < N; ++i) sums[i] = Row::zero();
  for (int64_t tap = 0; tap < b.tap_count; ++tap) {
    const float* x = band + b.taps[tap];
    const Row::V w = Row::set1(weights[tap]);
    SI_UNROLL
    for (int i = 0; i < N; ++i) sums[i] = Row::fma(w, Row::load(x + i * R), sums[i]);
  }
  SI_UNROLL
  for (int i = 0; i < N; ++i) Row::store(out + i * R, sums[i]);
}

// One channel, in windows of kSize x kSize.
template <int kSize>
struct WindowSums {
  Row::V weights[kSize * kSize];
  Row::V factor, bias;
  const float* residual;  // of the channel, nullable
  float* y;               // of the channel
  Activation activation;

  WindowSums(const float* w, const ImageEpilogue& e, int64_t channel, float* to)
      : factor(Row::set1(e.factors != nullptr ? e.factors[channel] : 1.0f)),
        bias(Row::set1(e.bias != nullptr ? e.bias[channel] : 0.0f)),
        residual(e.residual != nullptr ? e.residual + channel * e.residual_plane : nullptr),
        y(to),
        activation(e.activation) {
    SI_UNROLL
    for (int i = 0; i < kSize * kSize; ++i) weights[i] = Row::set1(w[i]);
  }

  static Row::V outside() { return Row::zero(); }
  static Row::V start() { return Row::zero(); }
  SI_INLINE Row::V take(Row::V sum, Row::V x, int tap) const { return Row::fma(weights[tap], x, sum); }
  template <int N>
  SI_INLINE void finish(Row::V (&v)[N], int64_t pixel, int64_t out_w, int count) const {
    SI_UNROLL
    for (int i = 0; i < N; ++i) {
      v[i] = Row::fma(v[i], factor, bias);
      if (residual != nullptr) v[i] = Row::add(v[i], Row::load_partial(residual + pixel + i * out_w, count));
    }
    activate_all<Row>(v, activation);
    SI_UNROLL
    for (int i = 0; i < N; ++i) Row::store_partial(y + pixel + i * out_w, v[i], count);
  }
};

void depthwise(const ImagePlanes& x, const PoolWindow& w, const float* weights, const ImageEpilogue& e, float* y,
               int64_t out_h, int64_t out_w, int64_t y_plane, int64_t begin, int64_t end) {
  const bool done = with_window<3, 5>(w, [&](auto size, auto stride) {
    for_windows<size, stride>(x, w, out_h, out_w, begin, end, [&](int64_t channel) {
      return WindowSums<size>(weights + channel * (size * size), e, channel, y + channel * y_plane);
    });
  });
  if (done) return;
  const Bands b(w, out_h, out_w);
  if (b.rows == 0) return depthwise_by_taps(x, w, weights, e, y, out_h, out_w, y_plane, begin, end);
  alignas(64) float band[kBandFloats + kBandSlack] = {}, sums[kBandFloats + kBandSlack];
  for (int64_t channel = begin; channel < end; ++channel) {
    const float* plane = x.x + channel * x.plane;
    for (int64_t oy = 0; oy < out_h; oy += b.rows) {
      const int64_t rows = out_h - oy < b.rows ? out_h - oy : b.rows;
      for (int64_t py = 0; py < b.phases_h; ++py) {
        for (int64_t px = 0; px < b.phases_w; ++px) {
          float* phase = band + (py * b.phases_w + px) * b.phase_rows * b.pitch;
          for (int64_t r = 0; r < rows + b.phase_rows - b.rows; ++r) {
            const int64_t down = (oy + r) * w.stride_h + py - w.pad_top;
            copy_row(x, plane, down, px - w.pad_left, w.stride_w, b.pitch, phase + r * b.pitch);
          }
        }
      }
      const int64_t size = (rows - 1) * b.pitch + out_w;
      const float* own = weights + channel * b.tap_count;
      int64_t i = 0;
      for (; size - i > kBandVectors / 2 * R; i += kBandVectors * R) sum_taps<kBandVectors>(band + i, b, own, sums + i);
      if (i < size) sum_taps<kBandVectors / 2>(band + i, b, own, sums + i);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t pixel = (oy + r) * out_w;
        finish_row(sums + r * b.pitch, e, channel, pixel, out_w, y + channel * y_plane + pixel);
      }
    }
  }
}

}  // namespace
}  // namespace sparseinfer
