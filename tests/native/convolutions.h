// Convolutions as products: x is unfolded by hand, and what a kernel makes of the image is compared with that.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "tested.h"

namespace native_tests {
namespace {

// x [batch][channels][height][width], and a problem whose tokens are the pixels of y.
struct Convolution {
  ConvShape shape;
  std::vector<double> image;
  Problem problem;

  // Sizes of the output follow from padding by the same number at all edges.
  Convolution(ConvShape s, int64_t pad_bottom, int64_t pad_right, int64_t n, int64_t block_rows, int64_t block_cols)
      : shape(with_output(s, pad_bottom, pad_right)),
        problem(n, s.channels * s.kernel_h * s.kernel_w, conv_tokens(shape), block_rows, block_cols) {
    Random random(static_cast<uint64_t>(problem.m * 31 + problem.k));
    image.resize(static_cast<size_t>(s.batch * s.channels * s.height * s.width));
    for (double& v : image) v = static_cast<double>(random.between(-3, 3));
    // Every image spans 255, so that rounding it to 8 bits is exact; its first channel has a pixel of each end.
    const size_t size = image.size() / static_cast<size_t>(s.batch > 0 ? s.batch : 1);
    for (size_t i = 0; i + 1 < image.size(); i += size) {
      image[i] = -100.0;
      image[i + size - 1] = 155.0;
    }
    problem.fill(Values::kIntegers, 0.6, random.next());
    for (int64_t t = 0; t < problem.m; ++t) {
      for (int64_t c = 0; c < problem.k; ++c) problem.x[static_cast<size_t>(t * problem.k + c)] = input(t, c);
    }
    problem.finish();
    shape.x_image = s.channels * s.height * s.width + 5;
    shape.y_image = n * shape.out_h * shape.out_w + 3;
    shape.x_plane = s.height * s.width;
    shape.y_plane = shape.out_h * shape.out_w;
  }

  std::string text() const {
    const int64_t numbers[] = {shape.batch,      shape.channels,   shape.height,   shape.width,   shape.kernel_h,
                               shape.kernel_w,   shape.stride_h,   shape.stride_w, shape.pad_top, shape.pad_left,
                               shape.dilation_h, shape.dilation_w, shape.out_h,    shape.out_w};
    std::string s = " conv=";
    for (int64_t v : numbers) s += std::to_string(v) + ",";
    return s;
  }

 private:
  static ConvShape with_output(ConvShape s, int64_t pad_bottom, int64_t pad_right) {
    s.out_h = (s.height + s.pad_top + pad_bottom - s.dilation_h * (s.kernel_h - 1) - 1) / s.stride_h + 1;
    s.out_w = (s.width + s.pad_left + pad_right - s.dilation_w * (s.kernel_w - 1) - 1) / s.stride_w + 1;
    return s;
  }

  double input(int64_t token, int64_t column) const {
    const ConvShape& s = shape;
    const int64_t taps = s.kernel_h * s.kernel_w, channel = column / taps, tap = column % taps;
    const int64_t plane = s.out_h * s.out_w, pixel = token % plane;
    const int64_t y = pixel / s.out_w * s.stride_h - s.pad_top + tap / s.kernel_w * s.dilation_h;
    const int64_t x = pixel % s.out_w * s.stride_w - s.pad_left + tap % s.kernel_w * s.dilation_w;
    if (y < 0 || y >= s.height || x < 0 || x >= s.width) return 0.0;
    return image[static_cast<size_t>(((token / plane * s.channels + channel) * s.height + y) * s.width + x)];
  }
};

// y as the kernel leaves it, with gaps between the images. Throws where something was written that is not the kernel's.
Fenced run(const Call& call, const Convolution& c) {
  const ConvShape& s = c.shape;
  const int64_t n = call.problem.n, size = dtype_bytes(call.x_dtype);
  const int64_t x_size = s.channels * s.height * s.width, y_size = n * s.out_h * s.out_w;
  auto length = [&](int64_t stride, int64_t last) { return s.batch > 0 ? (s.batch - 1) * stride + last : 0; };
  const Fenced x(length(s.x_image, x_size) * size), bias(n * dtype_bytes(call.bias_dtype()));
  Fenced y(length(s.y_image, y_size) * size);
  for (int64_t i = 0; i < s.batch * x_size; ++i) {
    put_bits(x.data(), i / x_size * s.x_image + i % x_size, call.x_dtype,
             encode(c.image[static_cast<size_t>(i)], call.x_dtype));
  }
  for (int64_t r = 0; r < n; ++r) {
    put_bits(bias.data(), r, call.bias_dtype(), encode(call.problem.bias[static_cast<size_t>(r)], call.bias_dtype()));
  }
  SpmmArgs args = arguments(call, x.data(), y.data(), bias.data());
  args.conv = &s;
  check_conv(s, call.packed);
  ConvShape rounded;
  round_images(call.kernel.kernel, args, rounded, Spread{call.parts == kBackwards ? 1 : call.parts});
  run(call, args);
  for (int64_t gap = y_size * size; gap < y.size(); gap += s.y_image * size) {
    if (!y.untouched(gap, gap + 3 * size)) throw std::runtime_error("wrote between the images of y");
  }
  return y;
}

void check_convolution(Tested& tested, const Convolution& c, const PackingHeader* h, DType dtype) {
  const Problem& p = c.problem;
  const int64_t plane = c.shape.out_h * c.shape.out_w;
  for (int parts : {kBackwards, 1, 3}) {
    const auto kind = static_cast<Bias>(tested.turn++ % 3);
    const Call call{tested.kernel, p, h, dtype, p.m, kind, Activation::kNone, parts};
    const std::string text = call.text() + c.text();
    std::snprintf(g_now, sizeof g_now, "%s", text.c_str());
    ++tested.products;
    ++tested.checks["convolutions"];
    try {
      const Fenced y = run(call, c);
      for (int64_t i = 0; i < p.m * p.n; ++i) {
        const int64_t token = i / p.n, row = i % p.n;
        const double bias = kind == Bias::kNone ? 0.0 : rounded(p.bias[static_cast<size_t>(row)], call.bias_dtype());
        const int64_t at = token / plane * c.shape.y_image + row * plane + token % plane;
        const double scale = tested.is_int8() ? scale_of(row) : 1.0, got = decode(get_bits(y.data(), at, dtype), dtype);
        const double exact = p.sums[static_cast<size_t>(i)] * scale + bias;
        if (got != rounded(exact, dtype)) {
          return fail("convolution: " + text + ": y[" + std::to_string(token) + ", " + std::to_string(row) +
                      "] expected " + std::to_string(exact) + ", got " + std::to_string(got));
        }
      }
    } catch (const std::exception& error) {
      fail("convolution: " + text + ": " + error.what());
    }
  }
}

void check_convolutions() {
  struct {
    ConvShape shape;
    int64_t pad_bottom, pad_right;
  } const cases[] = {
      // batch, channels, height, width; kernel; stride; padding; dilation
      {{1, 8, 5, 7, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0}, 0, 0},
      {{3, 4, 7, 7, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}, 1, 1},
      {{1, 2, 20, 30, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}, 1, 1},
      {{2, 4, 9, 21, 3, 3, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0}, 0, 0},
      {{2, 4, 15, 18, 3, 3, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}, 1, 1},
      {{70, 4, 1, 1, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}, 1, 1},
      {{2, 4, 6, 11, 2, 4, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0}, 1, 2},
      {{2, 4, 12, 13, 3, 2, 1, 3, 4, 2, 3, 2, 0, 0, 0, 0, 0, 0}, 4, 5},
      {{1, 4, 3, 2, 3, 3, 1, 1, 5, 6, 1, 1, 0, 0, 0, 0, 0, 0}, 4, 7},
      {{2, 20, 1, 90, 1, 16, 1, 1, 0, 7, 1, 1, 0, 0, 0, 0, 0, 0}, 0, 8},
      {{0, 4, 5, 5, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}, 1, 1},
  };
  for (const auto& one : cases) {
    for (auto [n, r, cols] : {std::array<int64_t, 3>{10, 1, 1}, {10, 2, 2}, {48, 16, 1}}) {
      const Convolution c(one.shape, one.pad_bottom, one.pad_right, n, r, cols);
      for (Tested& tested : g_tested) {
        if (!tested.kernel.kernel.takes_conv || !tested.takes(c.problem)) continue;
        for_packings(tested, c.problem, false, {0}, 3,
                     [&](const PackingHeader* h, DType x) { check_convolution(tested, c, h, x); });
      }
    }
  }
}

// Sizes that would be counted wrongly are refused.
void check_bad_convolutions() {
  const Convolution c({2, 4, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}, 1, 1, 4, 1, 1);
  PackingHeader header{};
  header.n = 4;
  header.k = 36;
  check_conv(c.shape, &header);
  auto* sizes = reinterpret_cast<const int64_t*>(&c.shape);
  for (size_t i = 0; i < sizeof(ConvShape) / 8; ++i) {
    for (int64_t value : {int64_t{-1}, int64_t{1} << 31, int64_t{1} << 62, std::numeric_limits<int64_t>::min(),
                          std::numeric_limits<int64_t>::max()}) {
      ConvShape bad;
      std::memcpy(&bad, sizes, sizeof bad);
      std::memcpy(reinterpret_cast<int64_t*>(&bad) + i, &value, sizeof value);
      // Images may lie far apart.
      if (i >= sizeof(ConvShape) / 8 - 4 && i < sizeof(ConvShape) / 8 - 2 && value == int64_t{1} << 31) continue;
      try {
        check_conv(bad, &header);
        fail("convolution: size " + std::to_string(i) + " of " + std::to_string(value) + " was not refused");
      } catch (const std::invalid_argument&) {
      }
    }
  }
}

}  // namespace
}  // namespace native_tests
