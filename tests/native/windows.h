// Depthwise convolution and pooling of every level against sums and maxima in fp64, on integers, so exactly; in memory
// that ends where the process may not go.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fenced.h"
#include "sparseinfer/registry.h"
#include "tested.h"

namespace native_tests {

struct WindowCase {
  int64_t height, width, channels;
  sparseinfer::PoolWindow window;
  int64_t pad_bottom, pad_right;
  bool pools, hostile;  // hostile: some pixels are no numbers
};

inline void check_window(const WindowCase& c, sparseinfer::Isa isa) {
  using namespace sparseinfer;
  std::mt19937 random(11);
  const PoolWindow& w = c.window;
  const int64_t taps = w.kernel_h * w.kernel_w, plane = c.height * c.width;
  const int64_t out_h = (c.height + w.pad_top + c.pad_bottom - (w.kernel_h - 1) * w.dilation_h - 1) / w.stride_h + 1;
  const int64_t out_w = (c.width + w.pad_left + c.pad_right - (w.kernel_w - 1) * w.dilation_w - 1) / w.stride_w + 1;
  const int64_t y_plane = out_h * out_w + 3;  // of which the last ones are not written to
  const auto filled = [&](int64_t count, bool hostile) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      value = static_cast<float>(static_cast<int>(random() % 17) - 8);
      const auto odd = random() % 24;
      if (hostile && odd < 3) value = odd == 0 ? NAN : odd == 1 ? INFINITY : -INFINITY;
    }
    return Fenced(values.data(), count * 4);
  };
  const auto floats = [](const Fenced& memory) { return reinterpret_cast<float*>(memory.data()); };
  const Fenced x = filled(c.channels * plane, c.hostile), weights = filled(c.channels * taps, false),
               factors = filled(c.channels, false), bias = filled(c.channels, false),
               residual = filled(c.channels * out_h * out_w, false);
  const Fenced y(c.channels * y_plane * 4);
  const ImagePlanes planes{floats(x), c.height, c.width, plane};
  const ImageEpilogue epilogue{floats(factors), floats(bias), floats(residual), out_h * out_w, Activation::kNone};
  const ImageOps& ops = image_ops(isa);
  for (auto [begin, end] : {std::pair<int64_t, int64_t>{1, c.channels}, {0, 1}}) {
    if (c.pools) {
      ops.max_pool(planes, w, floats(y), out_h, out_w, y_plane, begin, end);
    } else {
      ops.depthwise(planes, w, floats(weights), epilogue, floats(y), out_h, out_w, y_plane, begin, end);
    }
  }
  const auto wrong = [&](int64_t channel, int64_t pixel) {
    fail(std::string(c.pools ? "pooling at " : "depthwise at ") + kIsaNames[static_cast<int>(isa)] + ": " +
         std::to_string(c.height) + " x " + std::to_string(c.width) + ", windows of " + std::to_string(w.kernel_h) +
         " x " + std::to_string(w.kernel_w) + ", strides of " + std::to_string(w.stride_h) + " and " +
         std::to_string(w.stride_w) + ": channel " + std::to_string(channel) + ", pixel " + std::to_string(pixel));
  };
  for (int64_t channel = 0; channel < c.channels; ++channel) {
    for (int64_t pixel = 0; pixel < out_h * out_w; ++pixel) {
      double sum = 0, largest = -INFINITY;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t down = pixel / out_w * w.stride_h - w.pad_top + tap / w.kernel_w * w.dilation_h;
        const int64_t right = pixel % out_w * w.stride_w - w.pad_left + tap % w.kernel_w * w.dilation_w;
        if (down < 0 || down >= c.height || right < 0 || right >= c.width) continue;
        const double value = floats(x)[channel * plane + down * c.width + right];
        sum += value * static_cast<double>(floats(weights)[channel * taps + tap]);
        largest = value > largest || std::isnan(value) ? value : largest;
      }
      sum = sum * floats(factors)[channel] + floats(bias)[channel] + floats(residual)[channel * out_h * out_w + pixel];
      const double expected = c.pools ? largest : sum, got = floats(y)[channel * y_plane + pixel];
      if (got != expected && !(std::isnan(got) && std::isnan(expected))) return wrong(channel, pixel);
    }
    if (!y.untouched((channel * y_plane + out_h * out_w) * 4, (channel + 1) * y_plane * 4)) return wrong(channel, -1);
  }
}

inline void check_windows() {
  for (int level = 0; level < sparseinfer::kNumIsas; ++level) {
    const auto isa = static_cast<sparseinfer::Isa>(level);
    if (!sparseinfer::isa_supported(isa)) continue;
    for (int64_t height : {3, 7, 8, 15}) {
      for (int64_t width : {3, 5, 7, 14, 16, 17, 33, 70}) {
        for (int64_t side : {2, 3, 5}) {
          for (int64_t stride : {1, 2, 3}) {
            for (int64_t dilation : {1, 2}) {
              const int64_t before = side / 2, after = (side - 1) * dilation - before;
              const sparseinfer::PoolWindow window{side, side, stride, stride, before, before, dilation, dilation};
              check_window({height, width, 3, window, after, after, false, false}, isa);
              const bool fits = std::min(height, width) + 2 * before + 1 > (side - 1) * dilation;
              if (fits) check_window({height, width, 3, window, before, before + 1, false, true}, isa);
              if (dilation == 1) check_window({height, width, 3, window, before, before, true, true}, isa);
            }
          }
        }
      }
    }
  }
}

}  // namespace native_tests
