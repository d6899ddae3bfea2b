// What is checked before a kernel runs, for everything that calls one
#pragma once

#include "bindings/parse.h"
#include "bindings/structs.h"
#include "sparseinfer/registry.h"
#include "sparseinfer/spmm.h"

namespace sparseinfer {
namespace bindings {

// All throw std::invalid_argument.

const SpmmKernel& checked_kernel(int64_t id);

// A packing that the kernel reads.
const PackingHeader* checked_packing(const SpmmKernel& k, uintptr_t packed);

// What a call has but for the packing and where its tokens lie.
SpmmArgs checked_args(const SpmmKernel& k, uintptr_t x, int64_t dtype, uintptr_t y, const Epilogue& epilogue);

// A call that multiplies x by a packing of n rows.
SpmmArgs checked_product(const SpmmKernel& k, const Tokens& x, uintptr_t packed, const Epilogue& epilogue, uintptr_t y,
                         int64_t n);

}  // namespace bindings
}  // namespace sparseinfer
