// What a network of convolutions has between them, on the channels of one image in fp32: plain functions over a range
// of channels, compiled for each level like a kernel.
#pragma once

#include <stdint.h>

#include "sparseinfer/dtypes.h"

namespace sparseinfer {

// Channels [height][width], each `plane` elements behind the one before it.
struct ImagePlanes {
  const float* x;
  int64_t height, width, plane;
};

struct PoolWindow {
  int64_t kernel_h, kernel_w, stride_h, stride_w;
  int64_t pad_top, pad_left;  // what lies outside of the image is left out
  int64_t dilation_h, dilation_w;
};

// All pointers are nullable; residual has channels `residual_plane` elements apart.
struct ImageEpilogue {
  const float *factors, *bias, *residual;
  int64_t residual_plane;
  Activation activation;
};

struct ImageOps {
  // y[channel][out_h][out_w] = the largest of each window; NaN where one of its values is. Every window meets the
  // image.
  void (*max_pool)(const ImagePlanes& x, const PoolWindow& window, float* y, int64_t out_h, int64_t out_w,
                   int64_t y_plane, int64_t begin, int64_t end);
  // y[channel] = the mean of the channel, in a fixed order.
  void (*mean)(const ImagePlanes& x, float* y, int64_t y_plane, int64_t begin, int64_t end);
  // y[channel] = activation(factors[channel] * x[channel] + bias[channel] + residual[channel])
  void (*add)(const ImagePlanes& x, const ImageEpilogue& epilogue, float* y, int64_t y_plane, int64_t begin,
              int64_t end);
  // y[channel] = activation(x[channel] * the first of `scales`[channel]), which are `scales_plane` elements apart
  void (*scale)(const ImagePlanes& x, const float* scales, int64_t scales_plane, Activation activation, float* y,
                int64_t y_plane, int64_t begin, int64_t end);
  // The same as `add`, of the sums of a convolution of each channel with weights [channel][kernel_h][kernel_w] of its
  // own.
  void (*depthwise)(const ImagePlanes& x, const PoolWindow& window, const float* weights, const ImageEpilogue& epilogue,
                    float* y, int64_t out_h, int64_t out_w, int64_t y_plane, int64_t begin, int64_t end);
};

}  // namespace sparseinfer
