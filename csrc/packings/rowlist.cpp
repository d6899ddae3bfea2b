// The packing `rowlist`: the units of each row in a panel as a plain list, rows sorted by the length of their lists,
// longest first. For many tokens at high sparsity.
//
//   counts   Run []: number of consecutive rows whose lists have this length; rows without units do not appear
//   rows     uint16: row within the split, in the order of the runs
//   offsets  uint16: position in the panel of each unit, list after list; in pair storage padded to an even number,
//            in i8 to a multiple of four, with the position past the panel
//   values   one payload for each unit, 0 as padding
#include <algorithm>

#include "packings/packing.h"

namespace sparseinfer {
namespace {

template <class Payload>
void pack_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const size_t count = static_cast<size_t>(end - begin);
  const int64_t per_step = rowlist_step(h.storage);
  const auto* values = static_cast<const Payload*>(w.values);
  std::vector<int64_t> at(w.crow + begin, w.crow + end), stop(at);
  std::vector<uint16_t> order, by_length(count);
  std::vector<int64_t> bucket;

  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * h.panel, last = std::min(w.k, first + h.panel);
    out.cells.push_back({SplitStreams::count<Payload>(out.values), SplitStreams::count<uint16_t>(out.offsets),
                         SplitStreams::count<Run>(out.counts), SplitStreams::count<uint16_t>(out.rows)});
    auto length = [&](size_t r) { return (stop[r] - at[r] + per_step - 1) / per_step * per_step; };

    // Counting sort of the rows by length, longest first.
    bucket.assign(static_cast<size_t>(h.panel) + 3, 0);
    int64_t units = 0;
    order.clear();
    for (size_t r = 0; r < count; ++r) {
      const int64_t row_end = w.crow[begin + static_cast<int64_t>(r) + 1];
      for (stop[r] = at[r]; stop[r] < row_end && w.col[stop[r]] < last;) ++stop[r];
      if (stop[r] == at[r]) continue;
      order.push_back(static_cast<uint16_t>(r));
      ++bucket[static_cast<size_t>(h.panel + 2 - length(r))];
      units += length(r);
    }
    int64_t before = 0;
    for (int64_t& b : bucket) {
      const int64_t here = b;
      b = before;
      before += here;
    }
    for (uint16_t r : order) by_length[static_cast<size_t>(bucket[static_cast<size_t>(h.panel + 2 - length(r))]++)] = r;

    for (size_t i = 0; i < order.size();) {
      size_t j = i;
      while (j < order.size() && length(by_length[j]) == length(by_length[i])) ++j;
      *SplitStreams::extend<Run>(out.counts, 1) = {static_cast<uint16_t>(length(by_length[i])),
                                                   static_cast<uint16_t>(j - i)};
      i = j;
    }
    uint16_t* rows = SplitStreams::extend<uint16_t>(out.rows, static_cast<int64_t>(order.size()));
    uint16_t* offsets = SplitStreams::extend<uint16_t>(out.offsets, units);
    Payload* stored = SplitStreams::extend<Payload>(out.values, units);
    for (size_t n = 0; n < order.size(); ++n) {
      const size_t r = by_length[n];
      *rows++ = static_cast<uint16_t>(r);
      const int64_t fillings = length(r) - (stop[r] - at[r]);
      for (int64_t i = at[r]; i < stop[r]; ++i) {
        *offsets++ = static_cast<uint16_t>(w.col[i] - first);
        *stored++ = values[i];
      }
      for (int64_t i = 0; i < fillings; ++i) {
        *offsets++ = static_cast<uint16_t>(h.panel);
        *stored++ = Payload{0};
      }
      at[r] = stop[r];
    }
  }
}

int64_t check_cell(const PackingHeader& h, int64_t rows, int64_t width, CellReader& cell) {
  int64_t stored = 0;
  bool listed[kMaxSplitRows] = {};  // kernels finish a row where they meet it
  while (cell.has_counts()) {
    const Run& run = section<Run>(&h, h.counts)[cell.take_counts(1)];
    require(run.length % rowlist_step(h.storage) == 0, "counts");
    const int64_t first = cell.take_rows(run.rows);
    for (int64_t i = 0; i < run.rows; ++i) {
      const uint16_t row = section<uint16_t>(&h, h.rows)[first + i];
      require(row < rows && !listed[row], "rows");
      listed[row] = true;
    }
    const int64_t units = int64_t{run.length} * run.rows;
    stored += units - check_offsets<uint16_t>(h, cell.take_offsets(units), units, width, h.panel);
    cell.take_values(units);
  }
  return stored;
}

template <class Payload>
void visit(const PackingHeader& h, const CellPlace& place, RowSink<Payload>& sink) {
  const Run* run = section<Run>(&h, h.counts) + place.cell[0].counts;
  const Run* last = section<Run>(&h, h.counts) + place.cell[1].counts;
  const uint16_t* rows = section<uint16_t>(&h, h.rows) + place.cell->rows;
  const uint16_t* offsets = section<uint16_t>(&h, h.offsets) + place.cell->offsets;
  const Payload* values = section<Payload>(&h, h.values) + place.cell->values;
  for (; run < last; ++run) {
    for (int r = 0; r < run->rows; ++r, ++rows) {
      for (int i = 0; i < run->length; ++i, ++offsets, ++values) {
        if (*offsets != h.panel) sink.unit(place.row + *rows, place.panel * h.panel + *offsets, values);
      }
    }
  }
}

// i8 on Zen 5, 768 columns of 64 bytes, 4096x4096 and 64 tokens at 90 % zeros: 739 us, with 1536 columns 777, 2048 785.
int64_t panel(const PackingHeader& h) { return h.storage == Storage::kI8 ? 768 : l1_panel(h, 160); }

constexpr CellPacking kCells = [] {
  CellPacking cells = cells_of(pack_split<uint32_t>, pack_split<uint16_t>, pack_split<uint8_t>, check_cell);
  cells.count_bytes = sizeof(Run);
  cells.row_bytes = 2;
  cells.offset_bytes = 2;
  cells.panel = panel;
  cells.widest_panel = widest_l1_panel;
  return cells;
}();

}  // namespace

constexpr Packing rowlist_packing = [] {
  Packing packing = packing_of_rows<visit<uint32_t>, visit<uint16_t>, visit<uint8_t>>(&kCells);
  packing.min_rows = always<128>;  // more rows in a split mean longer runs of equal length
  return packing;
}();

}  // namespace sparseinfer
