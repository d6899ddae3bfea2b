// How the cell-based packings are built: each split appends to its own streams, then all splits are laid end to end.
#pragma once

#include <cstdint>
#include <vector>

#include "sparseinfer/pack.h"

namespace sparseinfer {

struct SplitStreams {
  std::vector<uint32_t> values;
  std::vector<uint8_t> offsets;
  std::vector<char> counts;
  std::vector<uint16_t> rows;
  std::vector<Cell> cells;  // start of each panel, relative to this split; `counts` in bytes
};

// One row of W as units, ascending: columns / unit and payloads.
struct UnitRow {
  std::vector<int32_t> units;
  std::vector<uint32_t> payloads;
};
void read_row(const SparseView& w, int64_t row, UnitRow& out);

// Appends rows [begin, end) to `out`, panel by panel. `h` holds the sizes (n, k, panel, panels, block).
void pack_rowgroup_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);
void pack_rowlist_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);
void pack_sell_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);
void pack_bsr_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);

// Receives every stored unit of a blob, in the blob's order: fn(row, unit, payload pointer). For bsr `unit` is the
// block column, `row` the first row of the strip, and the payloads are [block_cols][strip rows].
struct UnitSink {
  virtual void unit(int64_t row, int64_t unit, const uint32_t* payload) = 0;

 protected:
  ~UnitSink() = default;
};
void visit_split(const PackingHeader* h, int64_t split, UnitSink& sink);

}  // namespace sparseinfer
