// What the files about the packings of the CUDA kernels share.
#pragma once

#include <stdexcept>
#include <string>

#include "sparseinfer/gpu_packings.h"

namespace sparseinfer {
namespace gpu {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("packed: expected ") + what);
}

// The tiled kinds of check_blob, for a header that is checked, and of unpack; in gpu_tiles.cpp.
void check_tiles(const Header& h);
void unpack_tiles(const Header& h, int64_t* crow, int32_t* col, char* values);

}  // namespace gpu
}  // namespace sparseinfer
