// Runs one kernel over all tokens: workspace, threads, passes.
#pragma once

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

}  // namespace sparseinfer
