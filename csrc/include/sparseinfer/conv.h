// A convolution as the product y = W x: the columns of W are (channel, kernel row, kernel column), as in torch's
// weight.reshape(n, -1), and a token is a pixel of the output. x is read in place; nothing is unfolded.
#pragma once

#include <stdint.h>

namespace sparseinfer {

struct PackingHeader;

// x [batch][channels][height][width] and y [batch][n][out_h][out_w]. Images may lie further apart than they are large,
// so that one group of a grouped convolution is a convolution of its own; so may the channels of one image.
struct ConvShape {
  int64_t batch, channels, height, width;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;  // of zeros; how far zeros reach at the other edges follows from out_h and out_w
  int64_t dilation_h, dilation_w;
  int64_t out_h, out_w;
  int64_t x_image, y_image;  // elements from one image to the next
  int64_t x_plane, y_plane;  // elements from one channel to the next
};

// Elements of one image. Throws std::invalid_argument where a size is negative or the product too large.
int64_t image_elements(int64_t channels, int64_t height, int64_t width);

// Throws std::invalid_argument unless every size is one that a kernel can count with, the images of x and of y do not
// overlap and W has a column for every weight of the kernel.
void check_conv(const ConvShape& conv, const PackingHeader* w);

// The number of output pixels, m of the product.
static inline int64_t conv_tokens(const ConvShape& c) { return c.batch * c.out_h * c.out_w; }

}  // namespace sparseinfer
