// Runs one or two products and what is done to whole rows of the result, depth-first: a thread takes some tokens
// through all of it while they are in its cache.
#pragma once

#include "sparseinfer/kernel.h"
#include "sparseinfer/parallel.h"

namespace sparseinfer {

struct Product {
  const SpmmKernel* kernel = nullptr;
  SpmmArgs args;  // without a convolution; workspace is filled in
};

// y = norm(second(first(x))). x is that of `first`, y that of `last()`; what lies between them is filled in. The bits
// are those of the products one by one.
struct Block {
  Product first, second;  // `second` has no kernel: there is only one product
  const RowNorm* norm = nullptr;

  bool has_two() const { return second.kernel != nullptr; }
  const Product& last() const { return has_two() ? second : first; }
};

void run_block(const Block& block, Spread spread);

}  // namespace sparseinfer
