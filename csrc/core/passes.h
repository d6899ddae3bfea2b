// How the tokens of a call are cut into passes, for everything that runs kernels.
#pragma once

#include "sparseinfer/kernel.h"
#include "sparseinfer/parallel.h"

namespace sparseinfer {

constexpr int64_t kPassTokens = 64;  // passes are cut at multiples of the widest tile

// Tokens [first, first + count) of a call.
SpmmArgs tokens_of(SpmmArgs args, int64_t first, int64_t count);

// `spread`, or one thread where a call is too small for more.
Spread worth(Spread spread, const SpmmArgs& args);

// Gives a pass on this thread its workspace, with x in it, and returns the kernel's scratch memory.
char* prepare_pass(const SpmmKernel& kernel, SpmmArgs& args);

// Workspace of one pass.
int64_t pass_bytes(const SpmmKernel& kernel, const SpmmArgs& args);

// How many passes the threads share, each from beginning to end: none, or the same number for every thread, which is
// at least `least`.
int64_t passes_of_threads(const SpmmKernel& kernel, const SpmmArgs& args, Spread spread, int64_t least);

}  // namespace sparseinfer
