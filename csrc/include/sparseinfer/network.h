// A network of convolutions and what stands between them, computed image by image: one thread takes an image through
// all steps while its values are in its caches, in memory that is planned for the sizes of the call and kept for the
// next.
#pragma once

#include <array>
#include <vector>

#include "sparseinfer/image_ops.h"
#include "sparseinfer/kernel.h"
#include "sparseinfer/parallel.h"

namespace sparseinfer {

// conv, depthwise: y = activation(factors[n] * conv(x) + bias[n] + other); add: the same of x itself; max_pool; mean:
// of each channel, [n, 1, 1]; scale: y = activation(x * other) with `other` [n, 1, 1].
#define SI_STEP_KINDS(X)     \
  X(kConv, "conv")           \
  X(kDepthwise, "depthwise") \
  X(kMaxPool, "max_pool")    \
  X(kMean, "mean")           \
  X(kAdd, "add")             \
  X(kScale, "scale")

enum class StepKind : uint32_t { SI_STEP_KINDS(SI_NUMBER) };
constexpr const char* kStepKindNames[] = {SI_STEP_KINDS(SI_NAME)};

// Values are numbered: first the inputs, then the result of each step, which reads values before its own.
struct NetworkStep {
  StepKind kind;
  int64_t x, other;  // numbers of values; `other` may be kNoValue
  Activation activation;
  std::array<int64_t, 2> kernel_size, stride, padding, dilation;  // (height, width); padding: above and left
  std::array<int64_t, 2> padding_after;                           // below and right
  const SpmmKernel* kernel;                                       // conv: reads fp32 images
  std::vector<const PackingHeader*> groups;                       // conv: the packing of each group, checked
  const float* weights;                                           // depthwise: [n][kernel_size]
  int64_t n;                                                      // channels of the result, of factors and of bias
  const float *factors, *bias;                                    // [n], nullable
};
constexpr int64_t kNoValue = -1;

// Channels, height and width of one image.
using ImageShape = std::array<int64_t, 3>;

// Images [batch][channels][height][width] in fp32, contiguous.
struct InputImages {
  const float* data;
  ImageShape shape;
};
struct OutputImages {
  float* data;
  ImageShape shape;
};

class Network {
 public:
  // `outputs` are numbers of values that steps compute, each once. Throws std::invalid_argument where numbers of values
  // or of groups do not fit; sizes are checked when they are known.
  Network(int64_t inputs, std::vector<NetworkStep> steps, std::vector<int64_t> outputs);

  // Of the outputs for inputs of these shapes. Throws std::invalid_argument where steps and shapes do not fit.
  std::vector<ImageShape> output_shapes(const std::vector<ImageShape>& inputs) const;

  // The bits of an image do not depend on the batch or the threads. Throws std::invalid_argument for shapes that are
  // not `output_shapes`.
  void run(int64_t batch, const std::vector<InputImages>& inputs, const std::vector<OutputImages>& outputs,
           Spread spread) const;

 private:
  // Of all values, for inputs of these shapes.
  std::vector<ImageShape> shapes(const std::vector<ImageShape>& inputs) const;

  int64_t inputs_;
  std::vector<NetworkStep> steps_;
  std::vector<int64_t> outputs_;
};

}  // namespace sparseinfer
