// The packing `grouplist`: the rows of a block as groups of 16 (fewer where 16 does not divide them), and for each
// group one list of the columns that its blocks hold. For weights whose zeros lie in blocks of 16 rows and any number
// of columns, one above all: a column index serves 16 weights, which a vector holds.
//
// Sections as in group_columns.h; a step is a column, in pair storage two.
#include "packings/group_columns.h"

namespace sparseinfer {
namespace {

// Measured on Zen 5, 3072x768 and 4096x4096 with 80 and 90 % zeros, 128 tokens: widths from 384 to 1024 columns differ
// by a few percent. Wide panels end fewer loops, and x comes from L2 as fast as it is multiplied.
constexpr int64_t kGroupListPanel = 768;

int64_t panel(const PackingHeader& h) { return panel_of(h, kGroupListPanel); }

constexpr CellPacking kCells = group_cells(panel, check_blocks);

}  // namespace

constexpr Packing grouplist_packing = group_packing(&kCells);

}  // namespace sparseinfer
