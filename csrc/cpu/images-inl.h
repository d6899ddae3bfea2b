// Pooling, addition and scaling of images (image_ops.h), and depthwise convolution with any window. Usual windows of
// pooling are those of windows-inl.h. With others, a row of the output is computed tap by tap, in loops over its pixels
// that the compiler turns into vectors; it stays in L1 for all taps.
#pragma once

#include "cpu/activation-inl.h"
#include "cpu/types-inl.h"
#include "cpu/windows-inl.h"
#include "sparseinfer/image_ops.h"

namespace sparseinfer {
namespace {

// Pixels [first, last) of a row of the output for which a tap, `right` of the window's first, lies in the image.
struct Inside {
  int64_t first, last, from;  // `from`: where the tap meets the pixel `first`
};
SI_INLINE Inside inside_of(int64_t right, int64_t stride, int64_t width, int64_t out_w) {
  const int64_t first = right >= 0 ? 0 : (-right + stride - 1) / stride;
  const int64_t reach = width - right;  // pixel * stride < reach
  const int64_t last = reach <= 0 ? 0 : (reach + stride - 1) / stride;
  return {first, last < out_w ? last : out_w, first * stride + right};
}

SI_INLINE void max_row(const float* x, int64_t step, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    const float v = x[i * step];
    y[i] = v > y[i] || v != v ? v : y[i];
  }
}

SI_INLINE void multiply_row(const float* x, int64_t step, float w, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] += w * x[i * step];
}

// Calls row(x, step, tap, count, y) for every tap of every row of the output that meets the image; strides of 1 and 2
// are compiled apart, because their loops become vectors.
template <class Start, class Tap, class Finish>
SI_INLINE void for_rows(const ImagePlanes& x, const PoolWindow& w, float* y, int64_t out_h, int64_t out_w,
                        int64_t y_plane, int64_t begin, int64_t end, Start start, Tap tap, Finish finish) {
  for (int64_t channel = begin; channel < end; ++channel) {
    const float* plane = x.x + channel * x.plane;
    for (int64_t oy = 0; oy < out_h; ++oy) {
      float* row = y + channel * y_plane + oy * out_w;
      for (int64_t i = 0; i < out_w; ++i) row[i] = start;
      for (int64_t ky = 0; ky < w.kernel_h; ++ky) {
        const int64_t down = oy * w.stride_h - w.pad_top + ky * w.dilation_h;
        if (down < 0 || down >= x.height) continue;
        for (int64_t kx = 0; kx < w.kernel_w; ++kx) {
          const Inside in = inside_of(kx * w.dilation_w - w.pad_left, w.stride_w, x.width, out_w);
          if (in.first >= in.last) continue;
          const float* from = plane + down * x.width + in.from;
          tap(channel, ky * w.kernel_w + kx, from, in.last - in.first, row + in.first);
        }
      }
      finish(channel, oy * out_w, row);
    }
  }
}

struct Largest {
  float* y;  // of the channel

  static Row::V outside() { return Row::set1(-__builtin_inff()); }
  static Row::V start() { return outside(); }
  static SI_INLINE Row::V take(Row::V largest, Row::V x, int) { return Row::max_or_nan(largest, x); }
  template <int N>
  SI_INLINE void finish(const Row::V (&v)[N], int64_t pixel, int64_t out_w, int count) const {
    SI_UNROLL
    for (int i = 0; i < N; ++i) Row::store_partial(y + pixel + i * out_w, v[i], count);
  }
};

void max_pool(const ImagePlanes& x, const PoolWindow& w, float* y, int64_t out_h, int64_t out_w, int64_t y_plane,
              int64_t begin, int64_t end) {
  const bool done = with_window<2, 3>(w, [&](auto size, auto stride) {
    for_windows<size, stride>(x, w, out_h, out_w, begin, end,
                              [&](int64_t channel) { return Largest{y + channel * y_plane}; });
  });
  if (done) return;
  const int64_t step = w.stride_w;
  const auto nothing = [](int64_t, int64_t, float*) {};
  for_rows(
      x, w, y, out_h, out_w, y_plane, begin, end, -__builtin_inff(),
      [step](int64_t, int64_t, const float* from, int64_t count, float* to) { max_row(from, step, count, to); },
      nothing);
}

void mean_of_image(const ImagePlanes& x, float* y, int64_t y_plane, int64_t begin, int64_t end) {
  const int64_t size = x.height * x.width;
  for (int64_t channel = begin; channel < end; ++channel) {
    const float* from = x.x + channel * x.plane;
    double sums[R] = {};
    int64_t i = 0;
    for (; i + R <= size; i += R) {
      for (int lane = 0; lane < R; ++lane) sums[lane] += from[i + lane];
    }
    double sum = 0.0;
    for (; i < size; ++i) sum += from[i];
    for (int lane = 0; lane < R; ++lane) sum += sums[lane];
    y[channel * y_plane] = static_cast<float>(sum / static_cast<double>(size));
  }
}

// One row of y, from one of x that it may be.
SI_INLINE void finish_row(const float* x, const ImageEpilogue& e, int64_t channel, int64_t pixel, int64_t size,
                          float* y) {
  const Row::V factor = Row::set1(e.factors != nullptr ? e.factors[channel] : 1.0f);
  const Row::V bias = Row::set1(e.bias != nullptr ? e.bias[channel] : 0.0f);
  const float* residual = e.residual != nullptr ? e.residual + channel * e.residual_plane + pixel : nullptr;
  for (int64_t i = 0; i < size; i += R) {
    const int here = size - i < R ? static_cast<int>(size - i) : R;
    Row::V v = Row::fma(Row::load_partial(x + i, here), factor, bias);
    if (residual != nullptr) v = Row::add(v, Row::load_partial(residual + i, here));
    Row::store_partial(y + i, activate<Row>(v, e.activation), here);
  }
}

void add_images(const ImagePlanes& x, const ImageEpilogue& e, float* y, int64_t y_plane, int64_t begin, int64_t end) {
  for (int64_t channel = begin; channel < end; ++channel) {
    finish_row(x.x + channel * x.plane, e, channel, 0, x.height * x.width, y + channel * y_plane);
  }
}

// y[channel] = activation(x[channel] * scales[channel])
void scale_images(const ImagePlanes& x, const float* scales, int64_t scales_plane, Activation activation, float* y,
                  int64_t y_plane, int64_t begin, int64_t end) {
  for (int64_t channel = begin; channel < end; ++channel) {
    const ImageEpilogue e{scales + channel * (scales_plane - 1), nullptr, nullptr, 0, activation};
    finish_row(x.x + channel * x.plane, e, channel, 0, x.height * x.width, y + channel * y_plane);
  }
}

void depthwise_by_taps(const ImagePlanes& x, const PoolWindow& w, const float* weights, const ImageEpilogue& e,
                       float* y, int64_t out_h, int64_t out_w, int64_t y_plane, int64_t begin, int64_t end) {
  const int64_t step = w.stride_w, taps = w.kernel_h * w.kernel_w;
  for_rows(
      x, w, y, out_h, out_w, y_plane, begin, end, 0.0f,
      [&](int64_t channel, int64_t tap, const float* from, int64_t count, float* to) {
        const float weight = weights[channel * taps + tap];
        if (step == 1) return multiply_row(from, 1, weight, count, to);
        if (step == 2) return multiply_row(from, 2, weight, count, to);
        multiply_row(from, step, weight, count, to);
      },
      [&](int64_t channel, int64_t pixel, float* row) { finish_row(row, e, channel, pixel, out_w, row); });
}

}  // namespace
}  // namespace sparseinfer
