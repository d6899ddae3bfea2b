// The shared-memory addresses that each thread passes to ldmatrix for the operands of mma.m16n8k16 (PTX ISA, "Matrix
// Fragments for mma.m16n8k16"). Both operands lie as swizzled matrices of row_bytes a row; see swizzle in
// gpu_packings.h.
#pragma once

#include "sparseinfer/gpu_packings.h"

namespace sparseinfer {
namespace gpu {

// First operand, 16 tokens x 16 columns, ldmatrix.x4: tokens 0-7 and 8-15 of columns 0-7, then of columns 8-15.
SI_HD constexpr uint32_t token_fragment(int lane, int first_token, int first_column, int row_bytes) {
  const int token = first_token + lane % 16, column = first_column + lane / 16 * 8;
  return swizzle(static_cast<uint32_t>(token * row_bytes + column * 2), row_bytes);
}

// Second operand, 16 columns x 16 rows of W, ldmatrix.x4: columns 0-7 and 8-15 of rows 0-7, then of rows 8-15.
SI_HD constexpr uint32_t weight_fragment(int lane, int first_row, int first_column, int row_bytes) {
  const int row = first_row + lane % 8 + lane / 16 * 8, column = first_column + lane / 8 % 2 * 8;
  return swizzle(static_cast<uint32_t>(row * row_bytes + column * 2), row_bytes);
}

}  // namespace gpu
}  // namespace sparseinfer
