// Square windows of a size that is known beforehand, of neighbours and with one stride, over the channels of an image:
// the inner loop of depthwise convolution and of pooling.
//
// Loop order: channel > R columns of the result > kWindowRows rows of it > rows of the image that these meet. A row of
// the image is read once for each column of the window, straight from where it lies, and given to all rows of the
// result that it belongs to, whose values stay in registers. What lies outside of the image is not read: lanes beside
// it have the value that `Op` names, rows above and below are left out.
#pragma once

#include "cpu/types-inl.h"
#include "sparseinfer/image_ops.h"

namespace sparseinfer {
namespace {

template <int kValue>
struct Constant {
  constexpr operator int() const { return kValue; }
};

// Divides the heights of 7, 14, 28 ... that networks have. Beside the weights of 3 x 3 they fill the registers of
// AVX-512 and NEON; AVX2 reads weights again and again and is still faster with 7 rows than with 4 (Zen 5).
constexpr int kWindowRows = 7;

// R columns of the result, where the window's column `kColumn` meets a row of the image.
template <int kStep>
struct WindowColumns {
  int64_t from;  // in the row, and may lie outside
  Row::Lanes lanes[kStep];

  WindowColumns() = default;
  WindowColumns(int64_t first, int64_t width) : from(first) {
    for (int i = 0; i < kStep; ++i)
      lanes[i] = Row::lanes_between(lane_of(-first - i * R), lane_of(width - first - i * R));
  }
  static int lane_of(int64_t distance) { return distance < 0 ? 0 : distance < R ? static_cast<int>(distance) : R; }

  SI_INLINE Row::V load(const float* row, Row::V outside) const {
    static_assert(kStep <= 2);
    const Row::V v = Row::load(row + from, lanes[0], outside);
    if constexpr (kStep == 1) {
      return v;
    } else {
      return Row::evens(v, Row::load(row + from + R, lanes[1], outside));
    }
  }
};

// Op, made for each channel, has
//   outside()         what lies beside the image
//   start()           of every value of the result
//   take(v, x, tap)   v with x, which meets the tap number `tap` of the window; taps come in order
//   finish(v[], pixel, out_w, count)    writes v: `count` pixels of each row of out_w, in the first one from `pixel` on
// kRows rows of the result from `oy` on. Rows of one result are taken from top to bottom.
template <int kSize, int kStep, int kRows, class Op>
SI_INLINE void window_rows(const ImagePlanes& x, const float* plane, const PoolWindow& w,
                           const WindowColumns<kStep> (&columns)[kSize], int64_t oy, int64_t first, int64_t out_w,
                           int count, const Op& op) {
  Row::V values[kRows];
  SI_UNROLL
  for (int i = 0; i < kRows; ++i) values[i] = op.start();
  const int64_t top = oy * kStep - w.pad_top;
  SI_UNROLL
  for (int r = 0; r < (kRows - 1) * kStep + kSize; ++r) {
    if (top + r < 0 || top + r >= x.height) continue;
    const float* row = plane + (top + r) * x.width;
    SI_UNROLL
    for (int kx = 0; kx < kSize; ++kx) {
      const Row::V v = columns[kx].load(row, op.outside());
      SI_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const int ky = r - i * kStep;
        if (ky >= 0 && ky < kSize) values[i] = op.take(values[i], v, ky * kSize + kx);
      }
    }
  }
  op.finish(values, oy * out_w + first, out_w, count);
}

template <int kSize, int kStep, int kRows, class Op>
SI_INLINE void window_block(const ImagePlanes& x, const float* plane, const PoolWindow& w, int64_t oy, int64_t out_w,
                            const Op& op) {
  for (int64_t first = 0; first < out_w; first += R) {
    const int count = out_w - first < R ? static_cast<int>(out_w - first) : R;
    WindowColumns<kStep> columns[kSize];
    for (int kx = 0; kx < kSize; ++kx) columns[kx] = WindowColumns<kStep>(first * kStep + kx - w.pad_left, x.width);
    window_rows<kSize, kStep, kRows>(x, plane, w, columns, oy, first, out_w, count, op);
  }
}

// The last rows of the result may be computed twice.
template <int kSize, int kStep, class MakeOp>
void for_windows(const ImagePlanes& x, const PoolWindow& w, int64_t out_h, int64_t out_w, int64_t begin, int64_t end,
                 MakeOp make) {
  for (int64_t channel = begin; channel < end; ++channel) {
    const auto op = make(channel);
    const float* plane = x.x + channel * x.plane;
    if (out_h < kWindowRows) {
      for (int64_t oy = 0; oy < out_h; ++oy) window_block<kSize, kStep, 1>(x, plane, w, oy, out_w, op);
      continue;
    }
    for (int64_t oy = 0; oy < out_h; oy += kWindowRows) {
      const int64_t row = oy + kWindowRows <= out_h ? oy : out_h - kWindowRows;
      window_block<kSize, kStep, kWindowRows>(x, plane, w, row, out_w, op);
    }
  }
}

// Calls f(size, stride), constants of the compiler, if the window is square, of neighbours, and of one of these sizes;
// false if not.
template <int... kSizes, class F>
SI_INLINE bool with_window(const PoolWindow& w, F f) {
  const auto is = [&](int64_t size, int64_t stride) {
    return w.kernel_h == size && w.kernel_w == size && w.stride_h == stride && w.stride_w == stride &&
           w.dilation_h == 1 && w.dilation_w == 1;
  };
  const auto run = [&](auto size, auto stride) {
    if (!is(size, stride)) return false;
    f(size, stride);
    return true;
  };
  return ((run(Constant<kSizes>(), Constant<1>()) || run(Constant<kSizes>(), Constant<2>())) || ...);
}

}  // namespace
}  // namespace sparseinfer
