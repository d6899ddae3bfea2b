// Checks a network, plans where the values of an image lie, and runs images on threads.
#include "sparseinfer/network.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>

#include "core/arena.h"
#include "core/passes.h"
#include "sparseinfer/registry.h"
#include "sparseinfer/spmm.h"

namespace sparseinfer {
namespace {

// Channels start at an odd number of cache lines: whole powers of two would share few sets of the cache.
int64_t padded_plane(int64_t pixels) {
  const int64_t lines = (pixels + kLine - 1) / kLine;
  return (lines | 1) * kLine;
}

// Floats behind the last channel that vectors may read and write.
constexpr int64_t kSlack = 64;
constexpr int64_t kMostInWindow = (int64_t{1} << 31) - 1;

[[noreturn]] void fail(size_t step, const std::string& what) {
  throw std::invalid_argument("step " + std::to_string(step) + ": expected " + what);
}

std::string text(const ImageShape& s) {
  return "[" + std::to_string(s[0]) + ", " + std::to_string(s[1]) + ", " + std::to_string(s[2]) + "]";
}

bool has_window(const NetworkStep& s) {
  return s.kind == StepKind::kConv || s.kind == StepKind::kDepthwise || s.kind == StepKind::kMaxPool;
}

bool has_affine(const NetworkStep& s) { return s.factors != nullptr || s.bias != nullptr; }

ImageShape result_of(size_t number, const NetworkStep& s, const ImageShape& x) {
  const bool per_channel = s.kind == StepKind::kDepthwise || (s.kind == StepKind::kAdd && has_affine(s));
  if (per_channel && x[0] != s.n) fail(number, std::to_string(s.n) + " channels, got " + text(x));
  if (s.kind == StepKind::kAdd || s.kind == StepKind::kScale) return x;
  if (x[1] < 1 || x[2] < 1) fail(number, "images with pixels, got " + text(x));
  if (s.kind == StepKind::kMean) return {x[0], 1, 1};
  ImageShape y{s.kind == StepKind::kMaxPool ? x[0] : s.n, 0, 0};
  for (size_t i = 0; i < 2; ++i) {
    const int64_t reach = (s.kernel_size[i] - 1) * s.dilation[i] + 1,
                  size = x[i + 1] + s.padding[i] + s.padding_after[i];
    if (size < reach) fail(number, "a kernel that is not larger than the padded image, got " + text(x));
    y[i + 1] = (size - reach) / s.stride[i] + 1;
  }
  return y;
}

// Shapes of all values. Sizes of convolutions are checked by run_conv's own check.
std::vector<ImageShape> shapes_of(const std::vector<NetworkStep>& steps, const std::vector<ImageShape>& inputs) {
  std::vector<ImageShape> shapes = inputs;
  for (const ImageShape& shape : inputs) image_elements(shape[0], shape[1], shape[2]);
  for (size_t i = 0; i < steps.size(); ++i) {
    const NetworkStep& s = steps[i];
    const ImageShape& x = shapes[static_cast<size_t>(s.x)];
    if (s.kind == StepKind::kConv) {
      const auto groups = static_cast<int64_t>(s.groups.size());
      const int64_t columns = image_elements(x[0] / groups, s.kernel_size[0], s.kernel_size[1]);
      if (x[0] % groups != 0 || columns != s.groups[0]->k) fail(i, "the channels that were packed, got " + text(x));
    }
    const ImageShape y = result_of(i, s, x);
    image_elements(y[0], y[1], y[2]);
    const ImageShape other = s.kind == StepKind::kScale ? ImageShape{y[0], 1, 1} : y;
    if (s.other != kNoValue && shapes[static_cast<size_t>(s.other)] != other) {
      fail(i, std::string(s.kind == StepKind::kScale ? "one pixel of each channel" : "operands of one shape") +
                  ", got " + text(y) + " and " + text(shapes[static_cast<size_t>(s.other)]));
    }
    shapes.push_back(y);
  }
  return shapes;
}

// Where a value of one image lies: in the arena, or in the tensors of the call.
struct Place {
  ImageShape shape;
  int64_t plane = 0;
  int64_t offset = 0;        // in the arena
  const float* x = nullptr;  // an input's images
  float* y = nullptr;        // an output's images
  int64_t image = 0;         // elements from one image to the next
  int64_t last_use = -1;     // number of the step

  bool in_arena() const { return x == nullptr && y == nullptr; }
  int64_t elements() const { return shape[0] * plane + kSlack; }
  float* at(float* arena, int64_t number) const {
    if (x != nullptr) return const_cast<float*>(x) + number * image;  // no step writes to it
    return y != nullptr ? y + number * image : arena + offset;
  }
};

// Gives every value of a step its place; what is read for the last time makes room for later ones. A value that is
// added for the last time is overwritten by the sum. Returns the elements of the arena.
int64_t place(const std::vector<NetworkStep>& steps, size_t inputs, std::vector<Place>& values) {
  for (size_t i = 0; i < steps.size(); ++i) {
    for (int64_t read : {steps[i].x, steps[i].other}) {
      if (read != kNoValue) values[static_cast<size_t>(read)].last_use = static_cast<int64_t>(i);
    }
  }
  Arena arena;
  for (size_t i = 0; i < steps.size(); ++i) {
    const NetworkStep& s = steps[i];
    Place& y = values[inputs + i];
    const auto dies = [&](int64_t value) {
      if (value == kNoValue) return false;
      const Place& p = values[static_cast<size_t>(value)];
      return p.in_arena() && p.last_use == static_cast<int64_t>(i);
    };
    const bool in_place =
        s.kind == StepKind::kConv || s.kind == StepKind::kAdd;  // reads a value before it writes there
    const bool over = in_place && y.in_arena() && s.other != s.x && dies(s.other);
    if (over) {
      y.offset = values[static_cast<size_t>(s.other)].offset;
    } else if (y.in_arena()) {
      y.offset = arena.take(y.elements());
    }
    if (dies(s.x)) arena.give(values[static_cast<size_t>(s.x)].offset, values[static_cast<size_t>(s.x)].elements());
    if (!over && s.other != s.x && dies(s.other)) {
      arena.give(values[static_cast<size_t>(s.other)].offset, values[static_cast<size_t>(s.other)].elements());
    }
    if (y.in_arena() && y.last_use < 0) arena.give(y.offset, y.elements());  // nobody reads it
  }
  return arena.size();
}

// What a thread threw, for the one that waits for it.
struct Failure {
  std::mutex lock;
  std::exception_ptr thrown;

  void keep() {
    const std::lock_guard<std::mutex> locked(lock);
    thrown = std::current_exception();
  }
  void rethrow() const {
    if (thrown) std::rethrow_exception(thrown);
  }
};

// One call.
struct ImageRun {
  const std::vector<NetworkStep>& steps;
  size_t inputs;
  std::vector<Place> values;
  int64_t arena_bytes = 0;
  Failure failure;
};

// A step of an image that is spread over channels.
struct Channels {
  const NetworkStep* step;
  ImagePlanes x;
  const float* other;
  int64_t other_plane;
  float* y;
  const Place* result;
};

void run_channels(int64_t begin, int64_t end, void* ctx) {
  const Channels& c = *static_cast<const Channels*>(ctx);
  const NetworkStep& s = *c.step;
  const ImageOps& ops = image_ops(active_isa());
  const PoolWindow window{s.kernel_size[0], s.kernel_size[1], s.stride[0],   s.stride[1],
                          s.padding[0],     s.padding[1],     s.dilation[0], s.dilation[1]};
  const ImageEpilogue epilogue{s.factors, s.bias, c.other, c.other_plane, s.activation};
  const int64_t out_h = c.result->shape[1], out_w = c.result->shape[2], plane = c.result->plane;
  switch (s.kind) {
    case StepKind::kMaxPool:
      return ops.max_pool(c.x, window, c.y, out_h, out_w, plane, begin, end);
    case StepKind::kMean:
      return ops.mean(c.x, c.y, plane, begin, end);
    case StepKind::kAdd:
      return ops.add(c.x, epilogue, c.y, plane, begin, end);
    case StepKind::kScale:
      return ops.scale(c.x, c.other, c.other_plane, s.activation, c.y, plane, begin, end);
    case StepKind::kDepthwise:
      return ops.depthwise(c.x, window, s.weights, epilogue, c.y, out_h, out_w, plane, begin, end);
    case StepKind::kConv:
      return;
  }
}

// A convolution of 1x1 whose rows are too few for the threads, which take pixels of one image instead.
struct PixelStep {
  const NetworkStep* step;
  SpmmArgs args;
  const Place *x, *y;
  Failure failure;
};

// Whether a piece of the pixels is a convolution of its own that gives the same bits.
bool takes_pixels(const NetworkStep& s) {
  constexpr std::array<int64_t, 2> kOne{1, 1}, kNone{0, 0};
  return s.groups.size() == 1 && s.kernel_size == kOne && s.stride == kOne && s.padding == kNone &&
         s.padding_after == kNone && s.kernel->tile_tokens > 0 && kPassTokens % s.kernel->tile_tokens == 0;
}

void run_pixels(int64_t begin, int64_t end, void* ctx) {
  PixelStep& p = *static_cast<PixelStep*>(ctx);
  const int64_t first = begin * kPassTokens, pixels = p.x->shape[1] * p.x->shape[2];
  const int64_t count = std::min(end * kPassTokens, pixels) - first;
  SpmmArgs args = p.args;
  args.x = static_cast<const float*>(args.x) + first;
  args.y = static_cast<float*>(args.y) + first;
  if (args.residual != nullptr) args.residual = static_cast<const float*>(args.residual) + first;
  const ConvSizes sizes{{1, p.x->shape[0], 1, count},
                        {1, p.y->shape[0], 1, count},
                        {1, 1},
                        {1, 1},
                        {0, 0},
                        {1, 1},
                        p.x->plane,
                        p.y->plane};
  try {
    run_conv(*p.step->kernel, args, sizes, p.step->groups, Spread::serial());
  } catch (...) {
    p.failure.keep();
  }
}

void run_step(const ImageRun& run, size_t number, float* arena, int64_t image, Spread spread) {
  const NetworkStep& s = run.steps[number];
  const Place& x = run.values[static_cast<size_t>(s.x)];
  const Place& y = run.values[run.inputs + number];
  const Place* other = s.other != kNoValue ? &run.values[static_cast<size_t>(s.other)] : nullptr;
  float* to = y.at(arena, image);
  const float* added = other != nullptr ? other->at(arena, image) : nullptr;
  if (s.kind != StepKind::kConv) {
    const ImagePlanes planes{x.at(arena, image), x.shape[1], x.shape[2], x.plane};
    Channels channels{&s, planes, added, other != nullptr ? other->plane : 0, to, &y};
    const int64_t taps = s.kind == StepKind::kDepthwise ? s.kernel_size[0] * s.kernel_size[1] : 1;
    if (x.shape[0] * x.plane * std::min(taps, kLine) < kSerialPrepare) spread = Spread::serial();
    return parallel_for(y.shape[0], spread, run_channels, &channels);
  }
  SpmmArgs args{};
  args.x = x.at(arena, image);
  args.y = to;
  args.bias = s.bias;
  args.factors = s.factors;
  args.residual = added;
  args.padded = x.in_arena();
  args.residual_plane = other != nullptr ? other->plane : 0;
  args.activation = s.activation;
  const int64_t pixels = x.shape[1] * x.shape[2], threads = num_ranges(spread);
  // Of more pixels, threads take some of their own anyway.
  const bool few_pixels = pixels > kPassTokens && pixels < 2 * threads * kPassTokens;
  if (few_pixels && s.groups[0]->splits < threads && takes_pixels(s)) {
    args.w = s.groups[0];
    args.m = pixels;
    PixelStep shared{&s, args, &x, &y, {}};
    parallel_for((pixels + kPassTokens - 1) / kPassTokens, worth(spread, args), run_pixels, &shared);
    return shared.failure.rethrow();
  }
  const ConvSizes sizes{{1, x.shape[0], x.shape[1], x.shape[2]},
                        {1, y.shape[0], y.shape[1], y.shape[2]},
                        s.kernel_size,
                        s.stride,
                        s.padding,
                        s.dilation,
                        x.plane,
                        y.plane};
  run_conv(*s.kernel, args, sizes, s.groups, spread);
}

void run_image(const ImageRun& run, int64_t image, Spread spread) {
  auto* arena = reinterpret_cast<float*>(thread_scratch(ScratchSlot::kArena, run.arena_bytes));
  for (size_t i = 0; i < run.steps.size(); ++i) run_step(run, i, arena, image, spread);
}

void run_images(int64_t begin, int64_t end, void* ctx) {
  ImageRun& run = *static_cast<ImageRun*>(ctx);
  try {
    for (int64_t image = begin; image < end; ++image) run_image(run, image, Spread::serial());
  } catch (...) {
    run.failure.keep();
  }
}

}  // namespace

Network::Network(int64_t inputs, std::vector<NetworkStep> steps, std::vector<int64_t> outputs)
    : inputs_(inputs), steps_(std::move(steps)), outputs_(std::move(outputs)) {
  constexpr int64_t kMost = int64_t{1} << 20;
  if (inputs < 1 || inputs > kMost || static_cast<int64_t>(steps_.size()) > kMost) {
    throw std::invalid_argument("inputs: expected from 1 to " + std::to_string(kMost) + ", got " +
                                std::to_string(inputs));
  }
  for (size_t i = 0; i < steps_.size(); ++i) {
    const NetworkStep& s = steps_[i];
    const int64_t values = inputs + static_cast<int64_t>(i);
    if (s.x < 0 || s.x >= values) fail(i, "x from 0 to " + std::to_string(values - 1) + ", got " + std::to_string(s.x));
    if (s.other < kNoValue || s.other >= values) {
      fail(i, "other from -1 to " + std::to_string(values - 1) + ", got " + std::to_string(s.other));
    }
    if (s.other != kNoValue && (s.kind == StepKind::kMaxPool || s.kind == StepKind::kMean)) {
      fail(i, "no other value, got " + std::to_string(s.other));
    }
    if (has_window(s)) {
      for (size_t d = 0; d < 2; ++d) {
        for (int64_t size : {s.kernel_size[d], s.stride[d], s.dilation[d]}) {
          if (size < 1 || size > kMostInWindow) fail(i, "sizes of a window, got " + std::to_string(size));
        }
        for (int64_t padding : {s.padding[d], s.padding_after[d]}) {
          if (padding < 0 || padding > kMostInWindow) {
            fail(i, "padding from 0 to " + std::to_string(kMostInWindow) + ", got " + std::to_string(padding));
          }
          if (s.kind == StepKind::kMaxPool && padding > s.kernel_size[d] / 2) {
            fail(i, "padding of at most half the kernel, got " + std::to_string(padding));
          }
        }
      }
    }
    if (s.kind == StepKind::kScale && s.other == kNoValue) fail(i, "another value, of one pixel");
    if (s.kind == StepKind::kDepthwise && (s.weights == nullptr || s.n < 1)) fail(i, "weights and channels");
    if (s.kind == StepKind::kConv) {
      if (s.kernel == nullptr || !s.kernel->takes_conv || s.kernel->round_images != nullptr) {
        fail(i, "a kernel that reads images of fp32");
      }
      if (s.groups.empty() || s.n % static_cast<int64_t>(s.groups.size()) != 0) fail(i, "a packing for each group");
      for (const PackingHeader* w : s.groups) {
        if (w->n != s.n / static_cast<int64_t>(s.groups.size()) || w->k != s.groups[0]->k) {
          fail(i, "groups of one shape for " + std::to_string(s.n) + " channels");
        }
      }
    }
  }
  std::vector<int64_t> sorted = outputs_;
  std::sort(sorted.begin(), sorted.end());
  const bool twice = std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
  const int64_t values = inputs + static_cast<int64_t>(steps_.size());
  if (sorted.empty() || twice || sorted.front() < inputs || sorted.back() >= values) {
    throw std::invalid_argument("outputs: expected numbers of different steps' results");
  }
}

std::vector<ImageShape> Network::shapes(const std::vector<ImageShape>& inputs) const {
  if (static_cast<int64_t>(inputs.size()) != inputs_) {
    throw std::invalid_argument("inputs: expected " + std::to_string(inputs_) + ", got " +
                                std::to_string(inputs.size()));
  }
  return shapes_of(steps_, inputs);
}

std::vector<ImageShape> Network::output_shapes(const std::vector<ImageShape>& inputs) const {
  const std::vector<ImageShape> all = shapes(inputs);
  std::vector<ImageShape> result;
  for (int64_t output : outputs_) result.push_back(all[static_cast<size_t>(output)]);
  return result;
}

void Network::run(int64_t batch, const std::vector<InputImages>& inputs, const std::vector<OutputImages>& outputs,
                  Spread spread) const {
  std::vector<ImageShape> given;
  for (const InputImages& input : inputs) given.push_back(input.shape);
  const std::vector<ImageShape> all = shapes(given);
  bool fits = batch >= 0 && outputs.size() == outputs_.size();
  for (size_t i = 0; fits && i < outputs.size(); ++i) {
    fits = outputs[i].shape == all[static_cast<size_t>(outputs_[i])];
  }
  if (!fits) throw std::invalid_argument("outputs: expected the shapes that follow from the inputs");
  if (batch == 0) return;

  ImageRun images{steps_, inputs.size(), {}, 0, {}};
  for (const ImageShape& shape : all) {
    Place value;
    value.shape = shape;
    value.plane = padded_plane(shape[1] * shape[2]);
    images.values.push_back(value);
  }
  const auto lies_in = [&](Place& value, const float* x, float* y) {
    value.x = x;
    value.y = y;
    value.plane = value.shape[1] * value.shape[2];
    value.image = value.shape[0] * value.plane;
  };
  for (size_t i = 0; i < inputs.size(); ++i) lies_in(images.values[i], inputs[i].data, nullptr);
  for (size_t i = 0; i < outputs.size(); ++i) {
    lies_in(images.values[static_cast<size_t>(outputs_[i])], nullptr, outputs[i].data);
  }
  images.arena_bytes = place(steps_, inputs.size(), images.values) * static_cast<int64_t>(sizeof(float));

  // As many images as come out even go to one thread each, the others through all threads one after another.
  const int64_t threads = num_ranges(spread), whole = batch / threads * threads;
  parallel_for(whole, spread, run_images, &images);
  images.failure.rethrow();
  for (int64_t image = whole; image < batch; ++image) run_image(images, image, spread);
}

}  // namespace sparseinfer
