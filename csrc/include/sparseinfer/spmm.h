// Runs one kernel over all tokens: workspace, threads, passes.
#pragma once

#include "sparseinfer/kernel.h"
#include "sparseinfer/parallel.h"

namespace sparseinfer {

// `call.workspace` is filled in here. Tokens go through in passes, so that the workspace stays bounded for any m.
void run_spmm(const SpmmKernel& kernel, const SpmmArgs& call, Spread spread);

}  // namespace sparseinfer
