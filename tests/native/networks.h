// Networks of integers against plain loops: exact, in memory that ends where the process may not go.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "convolutions.h"
#include "sparseinfer/network.h"

namespace native_tests {
namespace {

// [batch][channels][height][width]
struct Images {
  int64_t batch, channels, height, width;
  std::vector<double> values;

  Images(int64_t b, int64_t c, int64_t h, int64_t w)
      : batch(b), channels(c), height(h), width(w), values(static_cast<size_t>(b * c * h * w)) {}
  int64_t plane() const { return height * width; }
  ImageShape shape() const { return {channels, height, width}; }
  double& at(int64_t image, int64_t y, int64_t x) {  // image: with channel
    return values[static_cast<size_t>((image * height + y) * width + x)];
  }
  Fenced floats() const {
    const std::vector<float> narrow(values.begin(), values.end());
    return {narrow.data(), static_cast<int64_t>(narrow.size() * sizeof(float))};
  }
};

float* floats_of(const Fenced& memory) { return reinterpret_cast<float*>(memory.data()); }

std::vector<float> integers(int64_t count, int64_t most, Random& random) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(random.between(-most, most)));
  return values;
}

NetworkStep step(StepKind kind, int64_t x, int64_t other = kNoValue, Activation activation = Activation::kNone) {
  NetworkStep s{};
  s.kind = kind;
  s.x = x;
  s.other = other;
  s.activation = activation;
  s.kernel_size = s.stride = s.dilation = {1, 1};
  return s;
}

// A sparse convolution with what its results are multiplied by, a depthwise one that adds them, a pooling, a sum with
// itself, and its product with its mean. All values but those of the last step have few enough bits to be exact.
class SmallNetwork {
 public:
  SmallNetwork(const Convolution& c, const SpmmKernel& kernel, const PackingHeader* h) : c_(c), n_(c.problem.n) {
    Random random(11);
    factors_ = integers(n_, 2, random), bias_ = integers(n_, 9, random), weights_ = integers(n_ * 9, 1, random);
    NetworkStep conv = step(StepKind::kConv, 0, kNoValue, Activation::kRelu);
    const ConvShape& s = c.shape;
    conv.kernel_size = {s.kernel_h, s.kernel_w}, conv.stride = {s.stride_h, s.stride_w};
    conv.padding = conv.padding_after = {s.pad_top, s.pad_left}, conv.dilation = {s.dilation_h, s.dilation_w};
    conv.kernel = &kernel, conv.groups = {h}, conv.n = n_;
    conv.factors = factors_.data(), conv.bias = bias_.data();
    NetworkStep depthwise = step(StepKind::kDepthwise, 1, 1);
    depthwise.kernel_size = {3, 3}, depthwise.padding = depthwise.padding_after = {1, 1};
    depthwise.weights = weights_.data(), depthwise.n = n_, depthwise.bias = bias_.data();
    NetworkStep pool = step(StepKind::kMaxPool, 2);
    pool.kernel_size = pool.stride = {2, 2};
    steps = {conv,
             depthwise,
             pool,
             step(StepKind::kAdd, 3, 3, Activation::kRelu),
             step(StepKind::kMean, 4),
             step(StepKind::kScale, 4, 5)};
  }

  // Of the depthwise convolution and of the last step.
  std::vector<Images> expected() const {
    const ConvShape& s = c_.shape;
    Images first(s.batch, n_, s.out_h, s.out_w), second = first;
    for (int64_t i = 0; i < s.batch * n_; ++i) {
      for (int64_t pixel = 0; pixel < first.plane(); ++pixel) {
        const auto token = i / n_ * first.plane() + pixel;
        const auto channel = static_cast<size_t>(i % n_);
        const double sum = c_.problem.sums[static_cast<size_t>(token * n_ + i % n_)];
        first.at(i, pixel / s.out_w, pixel % s.out_w) = std::max(0.0, sum * factors_[channel] + bias_[channel]);
      }
    }
    Images last(s.batch, n_, s.out_h / 2, s.out_w / 2);
    for (int64_t i = 0; i < s.batch * n_; ++i) {
      for (int64_t y = 0; y < s.out_h; ++y) {
        for (int64_t x = 0; x < s.out_w; ++x) second.at(i, y, x) = depthwise(first, i, y, x);
      }
      double sum = 0;
      for (int64_t y = 0; y < last.height; ++y) {
        for (int64_t x = 0; x < last.width; ++x) {
          const auto pixel = [&](int64_t dy, int64_t dx) { return second.at(i, 2 * y + dy, 2 * x + dx); };
          const double most = std::max({pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1)});
          sum += last.at(i, y, x) = std::max(0.0, 2 * most);
        }
      }
      const double mean = sum / static_cast<double>(last.plane());
      for (int64_t y = 0; y < last.height; ++y) {
        for (int64_t x = 0; x < last.width; ++x) last.at(i, y, x) = static_cast<float>(last.at(i, y, x) * mean);
      }
    }
    return {second, last};
  }

  std::vector<NetworkStep> steps;

 private:
  double depthwise(Images& x, int64_t i, int64_t row, int64_t column) const {
    const int64_t channel = i % n_;
    double sum = bias_[static_cast<size_t>(channel)] + x.at(i, row, column);
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t y = row + tap / 3 - 1, z = column + tap % 3 - 1;
      if (y < 0 || y >= x.height || z < 0 || z >= x.width) continue;
      sum += weights_[static_cast<size_t>(channel * 9 + tap)] * x.at(i, y, z);
    }
    return sum;
  }

  const Convolution& c_;
  int64_t n_;
  std::vector<float> factors_, bias_, weights_;
};

Images image_of(const Convolution& c) {
  Images x(c.shape.batch, c.shape.channels, c.shape.height, c.shape.width);
  x.values = c.image;
  return x;
}

void check_network(Tested& tested, const Convolution& c, const PackingHeader* h) {
  const SmallNetwork small(c, tested.kernel.kernel, h);
  const Network network(1, small.steps, {2, 6});
  const Images x = image_of(c);
  const std::vector<Images> expected = small.expected();
  for (int parts : {1, 2, 3}) {
    const std::string text = std::string(tested.kernel.kernel.name) + c.text() + " parts=" + std::to_string(parts);
    std::snprintf(g_now, sizeof g_now, "network: %s", text.c_str());
    ++tested.checks["networks"];
    try {
      const Fenced xs = x.floats();
      std::vector<Fenced> ys;
      std::vector<OutputImages> outputs;
      for (const Images& y : expected) {
        ys.emplace_back(static_cast<int64_t>(y.values.size() * sizeof(float)));
        outputs.push_back({floats_of(ys.back()), y.shape()});
      }
      network.run(x.batch, {{floats_of(xs), x.shape()}}, outputs, Spread{parts});
      for (size_t y = 0; y < ys.size(); ++y) {
        for (size_t i = 0; i < expected[y].values.size(); ++i) {
          const double wanted = expected[y].values[i], got = floats_of(ys[y])[i];
          if (wanted == got) continue;
          return fail("network: " + text + ": output " + std::to_string(y) + " [" + std::to_string(i) + "] expected " +
                      std::to_string(wanted) + ", got " + std::to_string(got));
        }
      }
    } catch (const std::exception& error) {
      fail("network: " + text + ": " + error.what());
    }
  }
}

template <class F>
void check_refused(const char* what, F f) {
  try {
    f();
    fail(std::string("network: not refused: ") + what);
  } catch (const std::invalid_argument&) {
  }
}

void check_bad_networks(const Convolution& c, const SpmmKernel& kernel, const PackingHeader* h) {
  const SmallNetwork small(c, kernel, h);
  const Images x = image_of(c);
  const Fenced xs = x.floats();
  const Network network(1, small.steps, {6});
  check_refused("an output of another shape",
                [&] { network.run(x.batch, {{floats_of(xs), x.shape()}}, {{nullptr, x.shape()}}, Spread::serial()); });
  check_refused("no outputs", [&] { network.run(x.batch, {{floats_of(xs), x.shape()}}, {}, Spread::serial()); });
  check_refused("channels that were not packed",
                [&] { network.output_shapes({{c.shape.channels + 1, c.shape.height, c.shape.width}}); });
  check_refused("sizes that overflow",
                [&] { network.output_shapes({{c.shape.channels, int64_t{1} << 62, int64_t{1} << 62}}); });
  check_refused("an output that is an input", [&] { const Network bad(1, small.steps, {0}); });
  check_refused("an output twice", [&] { const Network bad(1, small.steps, {6, 6}); });
  for (int64_t value : {int64_t{-2}, int64_t{7}, std::numeric_limits<int64_t>::max()}) {
    for (int64_t NetworkStep::* read : {&NetworkStep::x, &NetworkStep::other}) {
      check_refused("a value that is not there yet", [&] {
        std::vector<NetworkStep> steps = small.steps;
        steps.back().*read = value;
        const Network bad(1, steps, {6});
      });
    }
  }
}

void check_networks() {
  // batch, channels, height, width; kernel; stride; padding; dilation. Results are 8 x 8, so that means are exact.
  const ConvShape shapes[] = {
      {3, 4, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0},
      {2, 8, 8, 8, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0},
      {1, 3, 15, 16, 3, 3, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0},
  };
  for (const ConvShape& shape : shapes) {
    const Convolution c(shape, shape.pad_top, shape.pad_left, 20, 1, 1);
    for (Tested& tested : g_tested) {
      const SpmmKernel& kernel = tested.kernel.kernel;
      if (!kernel.takes_conv || kernel.round_images != nullptr || tested.storage != Storage::kF32) continue;
      if (!tested.takes(c.problem)) continue;
      const Fenced blob = packed(tested, Format(c.problem, DType::kF32), tested.kernel.isa);
      check_network(tested, c, header(blob));
      if (tested.checks["networks"] == 3) check_bad_networks(c, kernel, header(blob));
    }
  }
}

}  // namespace
}  // namespace native_tests
