// The mapping of threads to rows and tokens in the CUDA kernels; any C++17 compiler compiles it, so that tests can.
#pragma once

#include "sparseinfer/gpu_packings.h"

namespace sparseinfer {
namespace gpu {

// Filling a panel of x, by warps in `fill_groups` groups: a thread takes the `vector` columns (16 bytes) from
// fill_column on, of `pair` tokens (one word) from fill_token on. 8 threads read 128 bytes of one token.
SI_HD constexpr int fill_groups(int vector) { return (kPanelColumns / vector + 7) / 8 * 8; }
SI_HD constexpr int fill_chunk(int group) { return group % 8; }
SI_HD constexpr int fill_column(int group, int lane, int vector) { return (group / 8 * 8 + lane % 8) * vector; }
SI_HD constexpr int fill_token(int group, int lane, int vector, int pair) {
  return fill_chunk(group) * vector + lane / 8 * pair;
}
// Byte in the tile of the word that holds these tokens of a column.
SI_HD constexpr int fill_position(int group, int lane, int column) {
  return x_chunk_offset(x_column_offset(column), fill_chunk(group)) + lane / 8 * 4;
}

// Position, within a tile of rows, of the row that a thread of a warp works on in a turn: 4 rows at once, 8 threads
// each. Positions of a window are sorted by length, so warps take their turns forwards and backwards.
SI_HD constexpr int tile_position(int turn, int warp, int warps, int lane) {
  return (turn * warps + (turn % 2 == 0 ? warp : warps - 1 - warp)) * 4 + lane / 8;
}

// 4 threads transpose 4 x 4 words in two steps, 1 and 2: thread q gives two words to thread q ^ step and takes two.
SI_HD constexpr int quad_sent(int q, int step, int i) {
  const int low = step == 1 ? 2 * i : i;  // the i-th word of the two whose number lacks the bit `step`
  return q & step ? low : low | step;
}

// Where a thread writes 16 bytes after the exchange of its sums: 8 columns of one token, of two tiles of 8 columns.
SI_HD constexpr int stored_token(int lane) { return lane / 4 + 8 * (lane % 4 / 2); }
SI_HD constexpr int stored_tile(int lane) { return lane % 2; }

}  // namespace gpu
}  // namespace sparseinfer
