// Runs one kernel over all tokens: allocates its workspace and distributes passes to threads.
#pragma once

#include <array>
#include <vector>

#include "sparseinfer/kernel.h"
#include "sparseinfer/parallel.h"

namespace sparseinfer {

// Rows [row, row + rows) of W, whose results are a matrix of their own.
struct OutputPart {
  void* y;  // [m, rows], contiguous; nullptr: nobody wants them
  int64_t row, rows;
};

// `call.workspace` is filled in here. Tokens go through in passes, so that the workspace stays bounded for any m.
//
// `parts`, if there are any, cover the rows of W in order, and take the place of `call.y` and `call.ldy`; not for
// convolutions. The bits are the same.
void run_spmm(const SpmmKernel& kernel, const SpmmArgs& call, Spread spread, const std::vector<OutputPart>& parts = {});

// Rounds the images of `args`, a convolution, where the kernel reads them as bytes; they then lie in this thread's
// scratch memory as `rounded` says, and `args` names both. Otherwise it changes nothing.
void round_images(const SpmmKernel& kernel, SpmmArgs& args, ConvShape& rounded, Spread spread);

// A convolution of all groups: images [batch, channels, height, width], and (height, width) of the rest. The channels
// lie `x_plane` and `y_plane` elements apart; 0: they are contiguous.
struct ConvSizes {
  std::array<int64_t, 4> x, y;
  std::array<int64_t, 2> kernel, stride, padding, dilation;
  int64_t x_plane = 0, y_plane = 0;
};

// Each of `groups` is the packing of one group's rows of W: a convolution of its own channels. `call` has x, y, bias
// [all rows], factors and residual of the whole, their dtypes and the activation; the rest is filled in here. `kernel`
// takes convolutions and reads these packings. Throws std::invalid_argument where sizes do not belong together
// (check_conv).
void run_conv(const SpmmKernel& kernel, const SpmmArgs& call, const ConvSizes& sizes,
              const std::vector<const PackingHeader*>& groups, Spread spread);

}  // namespace sparseinfer
