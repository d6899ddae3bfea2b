// Convolutions: checks their sizes for overflow, and runs each group as a convolution by itself.
#include "sparseinfer/conv.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "sparseinfer/packings.h"
#include "sparseinfer/spmm.h"

namespace sparseinfer {
namespace {

// Positions in an image, padding included, are counted in 32 bits.
constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
// Bytes are counted in 64 bits, and a position may lie before or behind the image.
constexpr int64_t kMaxElements = std::numeric_limits<int64_t>::max() / 16;

[[noreturn]] void fail(const std::string& name, const std::string& expected, int64_t got) {
  throw std::invalid_argument(name + ": expected " + expected + ", got " + std::to_string(got));
}

void check_size(const char* name, int64_t value, int64_t least) {
  if (value < least || value > kMaxSize) {
    fail(name, "a size from " + std::to_string(least) + " to " + std::to_string(kMaxSize), value);
  }
}

// a * b, or more than kMaxElements.
int64_t product(int64_t a, int64_t b) {
  int64_t result;
  return __builtin_mul_overflow(a, b, &result) || result > kMaxElements ? kMaxElements + 1 : result;
}

void check_elements(const char* name, int64_t elements) {
  if (elements > kMaxElements) fail(name, "at most " + std::to_string(kMaxElements) + " elements", elements);
}

}  // namespace

int64_t image_elements(int64_t channels, int64_t height, int64_t width) {
  check_size("channels", channels, 0);
  check_size("height", height, 0);
  check_size("width", width, 0);
  const int64_t elements = product(product(channels, height), width);
  check_elements("image", elements);
  return elements;
}

void check_conv(const ConvShape& c, const PackingHeader* w) {
  struct {
    const char* name;
    int64_t value, least;
  } const sizes[] = {
      {"batch", c.batch, 0},         {"kernel_size", c.kernel_h, 1}, {"kernel_size", c.kernel_w, 1},
      {"stride", c.stride_h, 1},     {"stride", c.stride_w, 1},      {"padding", c.pad_top, 0},
      {"padding", c.pad_left, 0},    {"dilation", c.dilation_h, 1},  {"dilation", c.dilation_w, 1},
      {"output height", c.out_h, 0}, {"output width", c.out_w, 0},
  };
  for (const auto& size : sizes) check_size(size.name, size.value, size.least);
  image_elements(c.channels, c.height, c.width);
  image_elements(w->n, c.out_h, c.out_w);
  if (c.x_plane < c.height * c.width) fail("x", "channels of " + std::to_string(c.height * c.width), c.x_plane);
  if (c.y_plane < c.out_h * c.out_w) fail("y", "channels of " + std::to_string(c.out_h * c.out_w), c.y_plane);
  const int64_t x_image = product(c.channels, c.x_plane), y_image = product(w->n, c.y_plane);
  check_elements("x", x_image);
  check_elements("y", y_image);

  const int64_t reach[] = {(c.out_h - 1) * c.stride_h + (c.kernel_h - 1) * c.dilation_h,
                           (c.out_w - 1) * c.stride_w + (c.kernel_w - 1) * c.dilation_w};
  for (int64_t r : reach) {
    if (r > kMaxSize) fail("kernel_size", "a kernel that reaches at most " + std::to_string(kMaxSize) + " elements", r);
  }
  if (c.x_image < (c.batch > 1 ? x_image : 0)) fail("x", "images of " + std::to_string(x_image), c.x_image);
  if (c.y_image < (c.batch > 1 ? y_image : 0)) fail("y", "images of " + std::to_string(y_image), c.y_image);
  check_elements("x", product(c.batch, c.x_image));
  check_elements("y", product(c.batch, c.y_image));
  check_elements("y", product(product(c.batch, c.out_h), c.out_w));

  const int64_t columns = product(product(c.channels, c.kernel_h), c.kernel_w);
  if (columns != w->k) {
    fail("x", std::to_string(w->k) + " weights a row as packed, of channels times the kernel's size", columns);
  }
}

namespace {

// One group of a convolution; x, y and bias lie behind those of the groups before it.
SpmmArgs group_of(SpmmArgs args, const ConvShape& shape, const PackingHeader* w, int64_t group) {
  const int64_t x_first = group * shape.channels * shape.x_plane, y_first = group * w->n * shape.y_plane;
  args.x = static_cast<const char*>(args.x) + x_first * dtype_bytes(args.dtype);
  args.y = static_cast<char*>(args.y) + y_first * dtype_bytes(args.dtype);
  if (args.factors != nullptr) args.factors += group * w->n;
  if (args.residual != nullptr) {
    const int64_t first = group * w->n * args.residual_plane;
    args.residual = static_cast<const char*>(args.residual) + first * dtype_bytes(args.dtype);
  }
  if (args.bias != nullptr) {
    args.bias = static_cast<const char*>(args.bias) + group * w->n * dtype_bytes(args.bias_dtype);
  }
  args.w = w;
  args.conv = &shape;
  args.m = conv_tokens(shape);
  return args;
}

struct Rounding {
  const SpmmKernel* kernel;
  const SpmmArgs* args;
  ValueRange* ranges;
};

void find_ranges(int64_t begin, int64_t end, void* ctx) {
  const auto& r = *static_cast<Rounding*>(ctx);
  r.kernel->find_ranges(*r.args, r.ranges, begin, end);
}

void round_pieces(int64_t begin, int64_t end, void* ctx) {
  const auto& r = *static_cast<Rounding*>(ctx);
  r.kernel->round_images(*r.args, r.ranges, begin, end);
}

}  // namespace

void round_images(const SpmmKernel& kernel, SpmmArgs& args, ConvShape& rounded, Spread spread) {
  if (kernel.round_images == nullptr) return;
  rounded = *args.conv;
  rounded.x_plane = rounded.height * rounded.width;
  rounded.x_image = rounded.channels * rounded.x_plane;
  // Images without pixels have no pieces. A scale of 0 is theirs.
  const int64_t pixels = rounded.batch * rounded.x_image, pieces = pixels > 0 ? rounded.batch * rounded.channels : 0;
  const int64_t scales = rounded.batch * static_cast<int64_t>(sizeof(TokenScale));
  const int64_t ranges = pieces * static_cast<int64_t>(sizeof(ValueRange));
  char* memory = thread_scratch(ScratchSlot::kImages, scales + ranges + pixels + 2 * kImageMargin);
  std::memset(memory, 0, static_cast<size_t>(scales));
  args.image_scales = reinterpret_cast<TokenScale*>(memory);
  args.bytes = reinterpret_cast<uint8_t*>(memory + scales + ranges + kImageMargin);
  if (spread.parts == 0 && pixels < kSerialPrepare) spread = Spread::serial();
  Rounding rounding{&kernel, &args, reinterpret_cast<ValueRange*>(memory + scales)};
  parallel_for(pieces, spread, find_ranges, &rounding);
  parallel_for(pieces, spread, round_pieces, &rounding);
  args.conv = &rounded;
}

void run_conv(const SpmmKernel& kernel, const SpmmArgs& call, const ConvSizes& s,
              const std::vector<const PackingHeader*>& packed, Spread spread) {
  const auto groups = static_cast<int64_t>(packed.size());
  if (groups == 0 || s.x[1] % groups != 0 || s.y[1] % groups != 0 || s.x[0] != s.y[0]) {
    fail("groups", "one packing for each, and a number that divides the channels", groups);
  }
  const int64_t rows = s.y[1] / groups;
  image_elements(s.x[1], s.x[2], s.x[3]);
  image_elements(s.y[1], s.y[2], s.y[3]);
  const int64_t x_plane = s.x_plane > 0 ? s.x_plane : s.x[2] * s.x[3];
  const int64_t y_plane = s.y_plane > 0 ? s.y_plane : s.y[2] * s.y[3];
  const ConvShape shape{s.x[0],
                        s.x[1] / groups,
                        s.x[2],
                        s.x[3],
                        s.kernel[0],
                        s.kernel[1],
                        s.stride[0],
                        s.stride[1],
                        s.padding[0],
                        s.padding[1],
                        s.dilation[0],
                        s.dilation[1],
                        s.y[2],
                        s.y[3],
                        product(s.x[1], x_plane),
                        product(s.y[1], y_plane),
                        x_plane,
                        y_plane};
  std::vector<SpmmArgs> calls;
  for (int64_t group = 0; group < groups; ++group) {
    const PackingHeader* w = packed[static_cast<size_t>(group)];
    if (w->n != rows) fail("n", std::to_string(w->n) + " out_features as packed", rows);
    check_conv(shape, w);
    calls.push_back(group_of(call, shape, w, group));
  }
  for (SpmmArgs& args : calls) {
    ConvShape rounded;
    round_images(kernel, args, rounded, spread);
    run_spmm(kernel, args, spread);
  }
}

}  // namespace sparseinfer
