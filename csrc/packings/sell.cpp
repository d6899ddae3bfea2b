// The packing `sell`: sliced ELL with sliding windows. The 16 rows of a slice advance together through windows of x
// that the kernel keeps in registers; a window starts at the leftmost column that any of the rows has not consumed yet.
// One panel holds all columns. For few tokens.
//
//   counts   uint32 [slices of the split]: windows of the slice
//   rows     uint32: first column of each window
//   offsets  uint8 [windows][steps][16 rows][columns per step]: position within the window, window - 1 as padding
//   values   payloads, in the same order, 0 as padding
//
// The width of windows and the steps in each, header.window and header.steps, are chosen for the level whose kernels
// will read the packing (levels.inc); the kernels of other levels read it too, more slowly.
#include <algorithm>
#include <limits>

#include "packings/packing.h"

namespace sparseinfer {
namespace {

int64_t row_multiple(const PackingHeader&) { return kSliceRows; }

// Windows of 64 fp32 take four registers to load: where they move on every second step, whole cache lines pay more than
// a few columns of reach lost to rounding down.
int64_t alignment(Storage storage, int64_t window, int64_t steps) {
  return columns_per_step(storage) == 1 && window == 64 && steps == 2 ? 16 : 1;
}

// The rows of one slice, walked from window to window.
struct Slice {
  int64_t at[kSliceRows], end[kSliceRows];

  Slice(const SparseView& w, int64_t row, int64_t row_end) {
    for (int64_t r = 0; r < kSliceRows; ++r) {
      const bool there = row + r < row_end;
      at[r] = there ? w.crow[row + r] : 0;
      end[r] = there ? w.crow[row + r + 1] : 0;
    }
  }

  // First column of the next window; negative when all rows are done.
  int64_t next_window(const SparseView& w, int64_t align) const {
    int32_t first = std::numeric_limits<int32_t>::max();
    bool any = false;
    for (int64_t r = 0; r < kSliceRows; ++r) {
      if (at[r] == end[r]) continue;
      any = true;
      first = std::min(first, w.col[at[r]]);
    }
    return any ? first / align * align : -1;
  }
};

template <class Payload>
void pack_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  if (h.panels == 0) return;
  out.cells.push_back({0, 0, 0, 0});
  const auto* values = static_cast<const Payload*>(w.values);
  const int64_t per_row = columns_per_step(h.storage), align = alignment(h.storage, h.window, h.steps);
  const int64_t slots = kSliceRows * per_row;
  const auto filling = static_cast<uint8_t>(h.window - 1);
  for (int64_t row = begin; row < end; row += kSliceRows) {
    Slice slice(w, row, end);
    uint32_t windows = 0;
    for (int64_t first; (first = slice.next_window(w, align)) >= 0; ++windows) {
      *SplitStreams::extend<uint32_t>(out.rows, 1) = static_cast<uint32_t>(first);
      uint8_t* offsets = SplitStreams::extend<uint8_t>(out.offsets, h.steps * slots);
      Payload* stored = SplitStreams::extend<Payload>(out.values, h.steps * slots);
      std::memset(offsets, filling, static_cast<size_t>(h.steps * slots));
      const int64_t reach = first + h.window - 1;
      for (int64_t r = 0; r < kSliceRows; ++r) {
        int64_t i = slice.at[r];
        for (int64_t step = 0; step < h.steps; ++step) {
          for (int64_t p = 0; p < per_row; ++p) {
            if (i == slice.end[r] || w.col[i] >= reach) break;
            const int64_t slot = step * slots + r * per_row + p;
            offsets[slot] = static_cast<uint8_t>(w.col[i] - first);
            stored[slot] = values[i++];
          }
        }
        slice.at[r] = i;
      }
    }
    *SplitStreams::extend<uint32_t>(out.counts, 1) = windows;
  }
}

// The window and the steps under which sell is expected to be fastest, from a sample of the rows.
void choose_window(const SparseView& w, Isa isa, PackingHeader& h) {
  constexpr int64_t kSamples = 8;  // slices looked at; chosen, not measured

  double best = std::numeric_limits<double>::infinity();
  for (const SellWindow* at = sell_windows(isa, h.storage); at->steps > 0; ++at) {
    const SellWindow& choice = *at;
    const int64_t per_window = choice.steps * columns_per_step(h.storage);
    const int64_t align = alignment(h.storage, choice.window, choice.steps);
    int64_t windows = 0;
    for (int64_t sample = 0; sample < kSamples; ++sample) {
      const int64_t row = w.n / kSliceRows * sample / kSamples * kSliceRows;
      Slice slice(w, row, std::min(w.n, row + kSliceRows));
      for (int64_t first; (first = slice.next_window(w, align)) >= 0; ++windows) {
        const int64_t reach = first + choice.window - 1;
        for (int64_t r = 0; r < kSliceRows; ++r) {
          const int64_t stop = std::min(slice.end[r], slice.at[r] + per_window);
          while (slice.at[r] < stop && w.col[slice.at[r]] < reach) ++slice.at[r];
        }
      }
    }
    const double cost = static_cast<double>(windows * choice.steps) * choice.cycles;
    if (cost < best) {
      best = cost;
      h.window = choice.window;
      h.steps = choice.steps;
    }
  }
}

void check_header(const PackingHeader& h) { require(window_is_valid(h.window) && steps_is_valid(h.steps), "header"); }

int64_t check_cell(const PackingHeader& h, int64_t rows, int64_t width, CellReader& cell) {
  const int64_t per_row = columns_per_step(h.storage), slots = h.steps * kSliceRows * per_row;
  int64_t stored = 0;
  for (int64_t slice = 0; slice < rows; slice += kSliceRows) {
    const int64_t windows = section<uint32_t>(&h, h.counts)[cell.take_counts(1)];
    const uint32_t* first = section<uint32_t>(&h, h.rows) + cell.take_rows(windows);
    for (int64_t window = 0; window < windows; ++window) {
      require(first[window] < width, "windows");
      const int64_t reach = width - first[window];
      const int64_t at = cell.take_offsets(slots);
      stored += slots - check_offsets<uint8_t>(h, at, slots, reach < h.window ? reach : h.window, h.window - 1);
      cell.take_values(slots);
      // Lanes past the last row hold nothing.
      const uint8_t* offsets = section<uint8_t>(&h, h.offsets) + at;
      for (int64_t i = 0; rows - slice < kSliceRows && i < slots; ++i) {
        require(i / per_row % kSliceRows < rows - slice || offsets[i] == h.window - 1, "offsets");
      }
    }
  }
  return stored;
}

template <class Payload>
void visit(const PackingHeader& h, const CellPlace& place, RowSink<Payload>& sink) {
  const uint32_t* counts = section<uint32_t>(&h, h.counts) + place.cell->counts;
  const uint32_t* first = section<uint32_t>(&h, h.rows) + place.cell->rows;
  const uint8_t* offsets = section<uint8_t>(&h, h.offsets) + place.cell->offsets;
  const Payload* values = section<Payload>(&h, h.values) + place.cell->values;
  const int64_t per_row = columns_per_step(h.storage), slots = kSliceRows * per_row;
  for (int64_t slice = 0; slice < place.rows; slice += kSliceRows, ++counts) {
    for (uint32_t window = 0; window < *counts; ++window, ++first) {
      for (int64_t step = 0; step < h.steps; ++step, offsets += slots, values += slots) {
        for (int64_t i = 0; i < slots; ++i) {
          if (offsets[i] == h.window - 1) continue;
          sink.unit(place.row + slice + i / per_row, *first + offsets[i], values + i);
        }
      }
    }
  }
}

constexpr CellPacking kCells = [] {
  CellPacking cells = cells_of(pack_split<uint32_t>, pack_split<uint16_t>, pack_split<uint8_t>, check_cell);
  cells.count_bytes = 4;
  cells.row_bytes = 4;
  cells.panel = all_columns;
  cells.choose = choose_window;
  cells.check_header = check_header;
  return cells;
}();

}  // namespace

constexpr Packing sell_packing = [] {
  Packing packing = packing_of_rows<visit<uint32_t>, visit<uint16_t>, visit<uint8_t>>(&kCells);
  packing.min_rows = always<32>;
  packing.row_multiple = row_multiple;
  return packing;
}();

}  // namespace sparseinfer
