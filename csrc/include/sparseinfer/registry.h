// All kernels of this build, from cpu/kernels.inc once per instruction-set level.
#pragma once

#include <vector>

#include "sparseinfer/cpu_features.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {

struct RegisteredKernel {
  SpmmKernel kernel;
  Isa isa;
  bool available;  // this machine can run it
};

// Kernel ids are positions in this list; they are valid within one process only.
const std::vector<RegisteredKernel>& registry();

}  // namespace sparseinfer
