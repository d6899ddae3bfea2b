// Common to the packings `grouplist` and `grouptile`: the rows of a block as groups, and for each group one list of the
// columns that its blocks hold. Columns are stored a few side by side, as many as the kernels multiply at a time.
//
//   counts   uint16 [cells][groups of the split]: columns of the group in the panel
//   offsets  uint16: column within the panel, group after group, ascending; padded to whole steps with the position
//            past the panel
//   values   [group][step][rows of the group][columns of the step]; 0 as padding
//   rows     unused
#pragma once

#include <algorithm>
#include <stdexcept>

#include "packings/packing.h"

namespace sparseinfer {
namespace {

constexpr int64_t kMostColumns = 65535;  // of a panel: offsets have 16 bits, and one value more for padding

// Columns of a step.
int64_t step_columns(const PackingHeader& h) {
  return h.kind == PackingKind::kGrouptile ? tile_inputs(h.storage) : columns_per_step(h.storage);
}

int64_t whole_blocks(const PackingHeader& h, int64_t columns) { return columns / h.block_cols * h.block_cols; }

// About so many columns.
int64_t panel_of(const PackingHeader& h, int64_t columns) {
  const int64_t wanted = whole_blocks(h, columns);
  return wanted > 0 ? wanted : h.block_cols;
}
int64_t widest_panel(const PackingHeader& h) {
  return whole_blocks(h, std::max(kMaxPanel, std::min(h.block_cols, kMostColumns)));
}

int64_t row_multiple(const PackingHeader& h) { return list_rows(h.block_rows); }

template <class Payload>
void pack_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const int64_t rows = list_rows(h.block_rows), groups = (end - begin) / rows, step = step_columns(h);
  const int64_t blocks_per_panel = h.panel / h.block_cols;
  const auto* values = static_cast<const Payload*>(w.values);
  std::vector<int64_t> at(static_cast<size_t>(groups));
  for (int64_t g = 0; g < groups; ++g) at[static_cast<size_t>(g)] = w.crow[(begin + g * rows) / h.block_rows];

  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * blocks_per_panel;
    out.cells.push_back({SplitStreams::count<Payload>(out.values), SplitStreams::count<uint16_t>(out.offsets),
                         SplitStreams::count<uint16_t>(out.counts), 0});
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t row = begin + g * rows, block_row = row / h.block_rows, in_block = row % h.block_rows;
      const int64_t start = at[static_cast<size_t>(g)];
      int64_t stop = start;
      while (stop < w.crow[block_row + 1] && w.col[stop] < first + blocks_per_panel) ++stop;
      at[static_cast<size_t>(g)] = stop;
      const int64_t columns = (stop - start) * h.block_cols, padded = (columns + step - 1) / step * step;
      *SplitStreams::extend<uint16_t>(out.counts, 1) = static_cast<uint16_t>(columns);
      uint16_t* offsets = SplitStreams::extend<uint16_t>(out.offsets, padded);
      Payload* to = SplitStreams::extend<Payload>(out.values, padded * rows);
      for (int64_t i = 0; i < columns; ++i) {
        const int64_t block = start + i / h.block_cols, c = i % h.block_cols;
        const Payload* from = values + (block * h.block_rows + in_block) * h.block_cols + c;
        offsets[i] = static_cast<uint16_t>((w.col[block] - first) * h.block_cols + c);
        for (int64_t r = 0; r < rows; ++r) to[i / step * step * rows + r * step + i % step] = from[r * h.block_cols];
      }
      std::fill(offsets + columns, offsets + padded, static_cast<uint16_t>(h.panel));
    }
  }
}

void check_blocks(const PackingHeader& h) {
  require(h.n % h.block_rows == 0 && h.k % h.block_cols == 0 && h.panel % h.block_cols == 0, "header");
}

int64_t check_cell(const PackingHeader& h, int64_t rows, int64_t width, CellReader& cell) {
  const int64_t each = list_rows(h.block_rows), step = step_columns(h);
  int64_t stored = 0;
  for (int64_t g = 0; g < rows / each; ++g) {
    const int64_t columns = section<uint16_t>(&h, h.counts)[cell.take_counts(1)];
    const int64_t padded = (columns + step - 1) / step * step, first = cell.take_offsets(padded);
    check_offsets<uint16_t>(h, first, columns, width);
    require(columns <= width, "counts");
    require(check_offsets<uint16_t>(h, first + columns, padded - columns, 0, h.panel) == padded - columns, "offsets");
    cell.take_values(padded * each);
    stored += columns * each;
  }
  return stored;
}

// Calls f(first row, column, payloads of the column, distance between them) for each column of each group of a cell.
template <class Payload, class F>
void visit(const PackingHeader& h, const CellPlace& place, F f) {
  const int64_t each = list_rows(h.block_rows), step = step_columns(h);
  const uint16_t* counts = section<uint16_t>(&h, h.counts) + place.cell->counts;
  const uint16_t* offsets = section<uint16_t>(&h, h.offsets) + place.cell->offsets;
  const Payload* values = section<Payload>(&h, h.values) + place.cell->values;
  for (int64_t r = 0; r < place.rows; r += each, ++counts) {
    const int64_t padded = (*counts + step - 1) / step * step;
    for (int64_t i = 0; i < *counts; ++i) {
      f(place.row + r, place.panel * h.panel + offsets[i], values + i / step * step * each + i % step, step);
    }
    offsets += padded;
    values += padded * each;
  }
}

template <class Payload>
void unpack_blocks(const PackingHeader& h, int64_t* crow, int32_t* col, void* values) {
  const int64_t each = list_rows(h.block_rows);
  auto group_of = [&](int64_t row) { return static_cast<size_t>(row / each); };
  std::vector<int64_t> columns(static_cast<size_t>(h.n / each), 0);  // [groups]
  for_cells(h, [&](const CellPlace& place) {
    visit<Payload>(h, place, [&](int64_t row, int64_t, const Payload*, int64_t) { ++columns[group_of(row)]; });
  });
  crow[0] = 0;
  for (int64_t row = 0; row < h.n; row += h.block_rows) {
    const int64_t block_row = row / h.block_rows, here = columns[group_of(row)];
    crow[block_row + 1] = crow[block_row] + here / h.block_cols;
    for (int64_t r = row; r < row + h.block_rows; r += each) {
      if (columns[group_of(r)] != here || here % h.block_cols != 0) {
        throw std::invalid_argument("packed: expected the same whole blocks in every group of a block row");
      }
    }
  }
  // Columns of one block arrive one after another, from each of its groups; each sets the block's column.
  std::fill(columns.begin(), columns.end(), 0);  // that have arrived
  for_cells(h, [&](const CellPlace& place) {
    visit<Payload>(h, place, [&](int64_t row, int64_t column, const Payload* payload, int64_t apart) {
      const int64_t arrived = columns[group_of(row)]++, c = arrived % h.block_cols;
      const int64_t block = crow[row / h.block_rows] + arrived / h.block_cols;
      col[block] = static_cast<int32_t>(column / h.block_cols);
      Payload* out = static_cast<Payload*>(values) + (block * h.block_rows + row % h.block_rows) * h.block_cols + c;
      for (int64_t r = 0; r < each; ++r) out[r * h.block_cols] = payload[r * apart];
    });
  });
}

constexpr CellPacking group_cells(int64_t (*panel)(const PackingHeader&), void (*check)(const PackingHeader&)) {
  CellPacking cells = cells_of(pack_split<uint32_t>, pack_split<uint16_t>, pack_split<uint8_t>, check_cell);
  cells.count_bytes = 2;
  cells.offset_bytes = 2;
  cells.panel = panel;
  cells.widest_panel = widest_panel;
  cells.check_header = check;
  return cells;
}

constexpr Packing group_packing(const CellPacking* cells) {
  Packing packing = packing_of_cells(cells);
  packing.format = "bsr";
  packing.pads_steps = true;
  packing.min_rows = always<16>;
  packing.row_multiple = row_multiple;
  packing.unpack[0] = unpack_blocks<uint32_t>;
  packing.unpack[1] = unpack_blocks<uint16_t>;
  packing.unpack[2] = unpack_blocks<uint8_t>;
  return packing;
}

}  // namespace
}  // namespace sparseinfer
