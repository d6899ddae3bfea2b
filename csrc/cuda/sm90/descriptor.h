// The descriptors that tell wgmma where an operand is in shared memory (PTX ISA, "Matrix Descriptor Format" of wgmma).
#pragma once

#include "sparseinfer/gpu_packings.h"

namespace sparseinfer {
namespace gpu {

// A matrix whose rows, of row_bytes = 32, 64 or 128, lie along k and are swizzled, beginning at `address`, a multiple
// of 8 * row_bytes. Bits 0-13: address / 16; 16-29: not used for such a matrix, 1; 32-45: bytes from 8 rows to the next
// 8, / 16; 62-63: the swizzle, 1 for 128 bytes, 2 for 64, 3 for 32. The next 16 columns of 16 bits are at address + 32:
// the swizzle is applied to the sum.
SI_HD constexpr uint64_t operand_descriptor(uint32_t address, int row_bytes) {
  const uint64_t mode = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
  return uint64_t{(address & 0x3ffffu) >> 4} | uint64_t{1} << 16 | static_cast<uint64_t>(8 * row_bytes / 16) << 32 |
         mode << 62;
}

}  // namespace gpu
}  // namespace sparseinfer
