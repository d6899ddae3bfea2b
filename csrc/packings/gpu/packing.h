// The interface of a packing of the CUDA kernels to the common code (blob.cpp). A packing is a file that defines
// `<name>_packing`: csr.cpp, bsr.cpp, bitmap.cpp and delta.cpp, which has delta4 and delta8. torch packs, on the device
// (sparseinfer/ops); here are sizes, checks and unpacking. SI_GPU_PACKINGS in gpu_packings.h lists the packings;
// their layouts are described there or in gpu_tiles.h.
#pragma once

#include <stdexcept>
#include <string>

#include "sparseinfer/gpu_packings.h"

namespace sparseinfer {
namespace gpu {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("packed: expected ") + what);
}
[[noreturn]] inline void refuse(const std::string& expected, int64_t got) {
  throw std::invalid_argument("packed: expected " + expected + ", got " + std::to_string(got));
}

// Gives sections their byte offsets, one after another behind the header.
class SectionPlaces {
 public:
  int64_t add(int64_t bytes) {
    const int64_t offset = size_;
    size_ += (bytes + kAlign - 1) / kAlign * kAlign;
    return offset;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = kHeaderBytes;
};

struct Packing {
  // Sets `panels` and the places of all sections. `h` has n, k, nnz, units and block, the first four within kMaxSize.
  // Refuses sizes that no kernel takes.
  void (*lay_out)(Header& h, SectionPlaces& places);

  // For a header that lay_out makes: refuses sections that a kernel could not read without leaving the blob, x or y.
  void (*check)(const Header& h);

  // Of a packing that is checked: crow [n / block + 1], col and values as Header::nnz says.
  void (*unpack)(const Header& h, int64_t* crow, int32_t* col, char* values);
};

#define SI_PACKING(number, name) extern const Packing name##_packing;
SI_GPU_PACKINGS(SI_PACKING)
#undef SI_PACKING

}  // namespace gpu
}  // namespace sparseinfer
