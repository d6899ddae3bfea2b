// All kernels of this build: the rows of cpu/kernels.inc once for each level of levels.inc.
#pragma once

#include <vector>

#include "sparseinfer/attention.h"
#include "sparseinfer/cpu_features.h"
#include "sparseinfer/image_ops.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {

struct RegisteredKernel {
  SpmmKernel kernel;
  Isa isa;
  bool available;  // this machine can run it
};

// Kernel ids are positions in this list; they are valid within one process only.
const std::vector<RegisteredKernel>& registry();

// Those of a level that this machine can run.
const ImageOps& image_ops(Isa isa);
const AttentionOps& attention_ops(Isa isa);

// Whether some row reads this packing with weights held so.
bool has_kernels(PackingKind packing, Storage storage);

}  // namespace sparseinfer
