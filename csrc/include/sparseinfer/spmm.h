// Runs one kernel over all tokens: workspace, threads, passes.
#pragma once

#include "sparseinfer/kernel.h"
#include "sparseinfer/parallel.h"

namespace sparseinfer {

// `args.workspace` is filled in here. Tokens go through in passes, so that the workspace stays bounded for any m.
void run_spmm(const SpmmKernel& kernel, SpmmArgs args, Spread spread);

}  // namespace sparseinfer
