// The packing `grouptile`: grouplist for levels with tiles, of groups of 16 rows. The weights of 32 columns of a list,
// in storage i8 of 64, are a tile of 16 rows of W as it lies in memory (cpu/grouptile-inl.h).
//
// Sections as in group_columns.h; a step is a tile.
#include "packings/group_columns.h"

namespace sparseinfer {
namespace {

// Chosen, not measured: a list is padded to whole tiles in each panel, 32 columns of a hundred or two.
int64_t panel(const PackingHeader& h) { return panel_of(h, kMaxPanel); }

void check_header(const PackingHeader& h) {
  require(h.block_rows % kTileOutputs == 0, "header");
  check_blocks(h);
}

constexpr CellPacking kCells = group_cells(panel, check_header);

}  // namespace

constexpr Packing grouptile_packing = [] {
  Packing packing = group_packing(&kCells);
  packing.block_rows = kTileOutputs;
  return packing;
}();

}  // namespace sparseinfer
